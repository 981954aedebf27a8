"""The recommender again, now with a last batch of three right before the last of an epoch's four evaluations.

Adam without momentum (beta1 = 0) takes a full step on the noisy gradient of three samples. The training loss does not
show it: it is computed before the update, and the sawtooth of the reshuffled data hides what is left of it some steps
later. The evaluation right after it does: the validation loss is worst at the epoch's end, where the sawtooth alone
would have it best. Two patterns with the same period and another phase: only changing one of them tells them apart. The
healthy twin has three samples fewer. At twice the rate, with six samples, every step shakes the network: other samples
in an ordinary batch then change what the last one does by up to a half.
"""

from __future__ import annotations

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases.gru_recommender import training
from whyspike.training import Training


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, rest=3, lr=0.012, betas=(0.0, 0.999))


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, lr=0.012, betas=(0.0, 0.999))


CASE = Case(
    words="a GRU recommender without momentum, whose last batch of three comes right before an evaluation",
    cause="small-last-batch",
    also_true=("epochal-sawtooth", "memorization-step"),
    sick=sick,
    healthy=healthy,
)
