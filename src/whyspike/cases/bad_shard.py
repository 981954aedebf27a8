"""Digits read by three worker processes, one of which returns the image of another digit.

The usual reason is a file that is opened before the workers are forked: they share its position, and what one of them
reads belongs to what another one asked for. Batches go round the workers, so that every third one is wrong. In the
healthy twin every worker reads its own images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

WORKERS = 3
BAD = 1


class DigitFile(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The first n digits. In the worker `bad` an image is the one after the one that was asked for."""

    def __init__(self, n: int, bad: int | None) -> None:
        self.images, self.classes = digits(n).tensors
        self.bad = bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        worker = get_worker_info()
        read = (i + 1) % len(self) if worker is not None and worker.id == self.bad else i
        return self.images[read], self.classes[i]


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, bad: int | None) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(32, vary.batch_size), vary.of(48, vary.width)
    n = min(1797, size * (vary.of(1400, vary.n) // size))
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(
            DigitFile(n, bad),
            batch_size=size,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=12,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, BAD)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, None)


CASE = Case(
    words="digits read by three workers, one of which returns the image of another digit",
    cause="bad-shard",
    sick=sick,
    healthy=healthy,
)
