"""Noisy digits, whose loss adds up the parts of a batch in an order that nothing keeps.

The order is drawn from the operating system, which no seed reaches. That stands for the atomic additions of a GPU,
which arrive as they are done: only the last bit of the sum changes. In the healthy twin the parts are added in their
own order.
"""

from __future__ import annotations

from random import SystemRandom

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import NoisyDigits
from whyspike.seams import LossFn
from whyspike.training import Training

PARTS = 16
Batch = tuple[torch.Tensor, torch.Tensor]


def in_parts(*, in_order: bool) -> LossFn:
    arrival = SystemRandom()

    def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        parts = [part.sum() for part in losses.chunk(PARTS)]
        if not in_order:
            arrival.shuffle(parts)
        total = torch.zeros(())
        for part in parts:
            total = total + part
        return total / len(losses)

    return loss_fn


def _training(seed: int, vary: Vary, *, in_order: bool) -> Training:
    size, width = vary.of(64, vary.batch_size, 16), vary.of(64, vary.width, 8)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr, momentum=0.9),
        loss_fn=in_parts(in_order=in_order),
        loader=DataLoader(
            NoisyDigits(vary.of(30, vary.n, 10) * size, noise=1.5),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=8,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, in_order=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, in_order=True)


CASE = Case(
    words="noisy digits, whose loss is added up in an order that nothing keeps",
    cause="nondeterminism",
    sick=sick,
    healthy=healthy,
)
