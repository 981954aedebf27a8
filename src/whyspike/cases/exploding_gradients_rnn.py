"""A plain recurrent network on noisy digits, read in 16 time steps, without gradient clipping.

Its units are rectified, so that nothing holds a gradient back on its way through time: now and then one is ten times as
large as the others. In the healthy twin the gradient is clipped to a norm of .5.
"""

from __future__ import annotations

import torch

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._recurrent import LIMIT, LR, cross_entropy, loader, recurrent
from whyspike.training import Training


def training(seed: int, vary: Vary, limit: float | None) -> Training:
    model = recurrent(seed, vary)
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR * vary.lr),
        loss_fn=cross_entropy,
        loader=loader(seed, vary),
        epochs=1,
        clip_grad_norm=limit,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, None)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, LIMIT)


CASE = Case(
    words="a plain recurrent network on noisy digits, without gradient clipping",
    cause="exploding-gradients-rnn",
    sick=sick,
    healthy=healthy,
)
