"""Noisy digits with cosine warm restarts: every 150 steps the learning rate is back at its highest value.

Each cycle ends at a hundredth of the learning rate, where the network settles; the restart throws it out again, within
a few steps. In the healthy twin the learning rate stays low after the first cycle.
"""

from __future__ import annotations

from math import cos, pi

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import NoisyDigits
from whyspike.training import Training

BATCH, STEPS, CYCLE, NOISE = 64, 2400, 150, 0.5

LR, LOW = 0.03, 0.01


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, *, restarts: bool) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(BATCH, vary.batch_size, 8), vary.of(64, vary.width, 16)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR * vary.lr)
    data = NoisyDigits(size * vary.of(STEPS, vary.n), noise=NOISE, seed=seed)  # once: no epoch has a say

    def factor(step: int) -> float:
        gone = step % CYCLE if restarts else min(step, CYCLE)
        return LOW + (1 - LOW) * (1 + cos(pi * gone / CYCLE)) / 2

    return Training(
        model=model,
        optimizer=optimizer,
        loss_fn=cross_entropy,
        loader=DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed)),
        epochs=1,
        scheduler=LambdaLR(optimizer, factor),
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, restarts=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, restarts=False)


CASE = Case(
    words="noisy digits with warm restarts of the learning rate every 150 steps",
    cause="lr-restart",
    sick=sick,
    healthy=healthy,
)
