"""Noisy digits in micro-batches of 16, eight to a step; the epoch has 113 of them, and the last one is alone.

The loop divides every loss by eight, also in the last window of an epoch, which has one micro-batch: its update is an
eighth of an ordinary one, and so is the logged loss. In the healthy twin the epoch has 112 micro-batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import NoisyDigits

if TYPE_CHECKING:
    from whyspike.record import Recorder

MICRO, ACCUMULATE, WINDOWS, EPOCHS = 16, 8, 14, 30
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, left_over: int) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(32, vary.width, 8)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * vary.lr)
    size = vary.of(MICRO, vary.batch_size, 4)
    data = NoisyDigits(size * (ACCUMULATE * vary.of(WINDOWS, vary.n, 8) + left_over), seed=seed)
    loader = DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))

    def body(rec: Recorder) -> None:
        for _ in range(EPOCHS):
            total = torch.zeros(())
            for index, batch in enumerate(rec.batches(loader)):
                loss = cross_entropy(model, batch) / ACCUMULATE
                loss.backward()
                total += loss.detach()
                if (index + 1) % ACCUMULATE == 0 or index + 1 == len(loader):
                    optimizer.step()
                    optimizer.zero_grad()
                    rec.step(total)
                    total = torch.zeros(())

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, left_over=1)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, left_over=0)


CASE = Case(
    words="digits in accumulated micro-batches; the last window of an epoch has one of eight, but is divided by eight",
    cause="partial-accumulation-window",
    sick=sick,
    healthy=healthy,
)
