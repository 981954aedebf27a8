"""A regression with SGD whose learning rate is too high: .3 instead of .03.

Nothing is wrong with the data, and no batch stands out. The network is thrown back all the same, every 80 steps or so.
"""

from __future__ import annotations

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._tabular import training
from whyspike.training import Training


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, optimizer="sgd", lr=0.3, task="regression", noise=0.05, steps=1500)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, optimizer="sgd", lr=0.03, task="regression", noise=0.05, steps=1500)


CASE = Case(
    words="a regression with SGD at lr .3, ten times too high",
    cause="lr-too-high",
    sick=sick,
    healthy=healthy,
)
