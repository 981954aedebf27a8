"""Digits from two sources, clear and noisy ones, whose shares change every 100 steps.

In one stage one sample in ten is noisy, in the next one nine in ten: the loss goes up at once, and down
again. In the healthy twin the shares stay equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Sampler

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import noisy_digits
from whyspike.training import Training

BATCH, STAGES, STEPS = 128, 24, 100  # STEPS of a stage
CLEAR, NOISY = 0.5, 1.5  # noise of the two sources, of a pixel's standard deviation
FEW, MANY = 0.1, 0.9  # share of the noisy source
LR = 0.02


class Staged(Sampler[int]):
    """Indices of two sources of `size` samples each, with the share of the second that its stage has."""

    def __init__(self, size: int, batch: int, seed: int, *, changes: bool) -> None:
        self.size, self.batch, self.changes = size, batch, changes
        self.draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return STAGES * STEPS * self.batch

    def __iter__(self) -> Iterator[int]:
        for stage in range(STAGES):
            share = (MANY if stage % 2 else FEW) if self.changes else (FEW + MANY) / 2
            n = STEPS * self.batch
            second = torch.rand(n, generator=self.draw) < share
            yield from (torch.randint(self.size, (n,), generator=self.draw) + self.size * second).tolist()


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, *, changes: bool) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(BATCH, vary.batch_size, 8), vary.of(64, vary.width, 16)
    n = vary.of(20_000, vary.n)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(
            ConcatDataset([noisy_digits(n, CLEAR, 0), noisy_digits(n, NOISY, 1)]),
            batch_size=size,
            sampler=Staged(n, size, seed, changes=changes),
        ),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, changes=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, changes=False)


CASE = Case(
    words="digits from two sources, clear and noisy, whose shares change every 100 steps",
    cause="data-mixture-change",
    sick=sick,
    healthy=healthy,
)
