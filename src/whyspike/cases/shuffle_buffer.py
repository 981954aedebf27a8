"""Digits sorted by class, shuffled only inside a buffer of a tenth of them.

A buffer holds some samples and hands out a random one of them, as `tf.data`, webdataset and streaming datasets do: a
sample leaves it not far from where it lies in the file. The file is sorted by class, so that each batch has two or
three classes, and the network forgets the others. In the healthy twin the buffer holds all samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

SHARE = 0.1  # of the samples, in the buffer


class BufferSampler(Sampler[int]):
    """Ids from 0 to n - 1 through a shuffle buffer: fill it, hand out a random one, take in the next."""

    def __init__(self, n: int, buffer: int, seed: int) -> None:
        self.n, self.buffer, self.rng = n, buffer, np.random.default_rng(seed)

    def __iter__(self) -> Iterator[int]:
        held = list(range(self.buffer))
        for coming in range(self.buffer, self.n):
            place = self.rng.integers(self.buffer)
            yield held[place]
            held[place] = coming
        yield from self.rng.permutation(held).tolist()

    def __len__(self) -> int:
        return self.n


def sorted_digits(n: int, seed: int) -> TensorDataset:
    """The n digits sorted by class, in random order inside each class."""
    images, classes = digits(n).tensors
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[classes[order].argsort(stable=True)]
    return TensorDataset(images[order], classes[order])


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, share: float) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(32, vary.batch_size), vary.of(64, vary.width)
    n = min(1797, vary.of(1440, vary.n)) // size * size
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr),
        loss_fn=cross_entropy,
        loader=DataLoader(sorted_digits(n, seed), batch_size=size, sampler=BufferSampler(n, int(share * n), seed)),
        epochs=14,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, SHARE)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, 1.0)


CASE = Case(
    words="digits sorted by class, shuffled inside a buffer of a tenth of them",
    cause="shuffle-buffer",
    sick=sick,
    healthy=healthy,
)
