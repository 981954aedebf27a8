"""Digits read by three worker processes, one of which returns the image of another digit.

The usual reason is a file that is opened before the workers are forked: they share its position, and what one of them
reads belongs to what another one asked for. Batches go round the workers, so that every third one is wrong. In the
healthy twin every worker reads its own images.
"""

from __future__ import annotations

import torch
from torch.utils.data import Dataset, get_worker_info

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.cases.bad_shard import BAD, size_of, training
from whyspike.training import Training


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


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, DigitFile(size_of(vary), BAD), by_shard=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, DigitFile(size_of(vary), None), by_shard=False)


CASE = Case(
    words="digits read by three workers, one of which returns the image of another digit",
    cause="bad-shard",
    sick=sick,
    healthy=healthy,
)
