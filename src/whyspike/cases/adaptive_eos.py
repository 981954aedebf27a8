"""Full-batch Adam on a regression: spikes without any randomness in the data.

496 samples, all of them in every step, and a learning rate of .01. Nothing is drawn, nothing is shuffled, and still the
loss spikes every few dozen steps. In the healthy twin the learning rate is .0003.
"""

from __future__ import annotations

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._tabular import training
from whyspike.training import Training


def _full_batch(seed: int, vary: Vary, lr: float) -> Training:
    return training(seed, vary, lr=lr, task="regression", noise=0.05, n=496, batch_size=None, steps=1200)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _full_batch(seed, vary, 1e-2)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _full_batch(seed, vary, 3e-4)


CASE = Case(
    words="a regression with Adam at lr .01, every step with all 496 samples",
    cause="adaptive-eos",
    sick=sick,
    healthy=healthy,
)
