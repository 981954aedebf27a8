"""A regression with a few samples whose targets have their decimal point in the wrong place.

7,936 samples, of which 2 have targets 100 times too large. Each of them throws the network off whenever it is drawn,
once an epoch, at a random step. In the healthy twin their targets are right.
"""

from __future__ import annotations

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._tabular import training
from whyspike.training import Training


def _regression(seed: int, vary: Vary, misplaced: int) -> Training:
    return training(
        seed, vary, optimizer="sgd", lr=0.03, task="regression", noise=0.05, n=7936, misplaced=misplaced, steps=2480
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _regression(seed, vary, 2)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _regression(seed, vary, 0)


CASE = Case(
    words="a regression with SGD; of 7,936 samples 2 have targets that are 100 times too large",
    cause="outlier-sample",
    sick=sick,
    healthy=healthy,
)
