"""Digits in three shards, one for each worker of the loader; in one shard the classes are off by one line.

Worker k reads shard k and batches go round the workers, so that every third batch is wrong, whoever reads it. In the
healthy twin all classes are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

SHARDS = 3
BAD = 1
Digits = tuple[torch.Tensor, torch.Tensor]


class WorkerLoader(DataLoader):
    """A DataLoader with one worker for each shard, which does not warn where a machine has fewer cores."""

    def check_worker_number_rationality(self) -> None:
        pass


class ShardBatches:
    """Batch k holds shuffled samples of shard k mod SHARDS; the shards are equal stretches of the ids."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.rounds, self.batch_size, self.of_shard = n // (SHARDS * batch_size), batch_size, n // SHARDS
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[int]]:
        orders = [
            (torch.randperm(self.of_shard, generator=self.generator) + k * self.of_shard).tolist()
            for k in range(SHARDS)
        ]
        for first in range(0, self.rounds * self.batch_size, self.batch_size):
            for order in orders:
                yield order[first : first + self.batch_size]

    def __len__(self) -> int:
        return self.rounds * SHARDS


def cross_entropy(model: nn.Module, batch: Digits) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, data: Dataset[Any], *, by_shard: bool) -> Training:
    """Three workers and a small network, trained on batches of one shard each or on shuffled ones."""
    torch.manual_seed(seed)
    size, width = vary.of(48, vary.batch_size), vary.of(48, vary.width)
    n = len(data)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    loader = (
        WorkerLoader(data, batch_sampler=ShardBatches(n, size, seed), num_workers=SHARDS, persistent_workers=True)
        if by_shard
        else WorkerLoader(
            data,
            batch_size=size,
            shuffle=True,
            drop_last=True,
            num_workers=SHARDS,
            persistent_workers=True,
            generator=generator,
        )
    )
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.015 * vary.lr, momentum=0.9)
    return Training(model=model, optimizer=optimizer, loss_fn=cross_entropy, loader=loader, epochs=16)


def size_of(vary: Vary) -> int:
    """Samples of the data set."""
    return min(1797, vary.of(1440, vary.n)) // SHARDS * SHARDS


def shards(vary: Vary, bad: int | None) -> TensorDataset:
    """The digits in random order; in the shard `bad` a digit has the class of the next one."""
    n = size_of(vary)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # a shard is no writer of his own
    images, classes = (t[order] for t in digits(n).tensors)
    if bad is not None:
        own = slice(bad * len(classes) // SHARDS, (bad + 1) * len(classes) // SHARDS)
        classes = classes.clone()
        classes[own] = classes[own].roll(-1)
    return TensorDataset(images, classes)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, shards(vary, BAD), by_shard=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, shards(vary, None), by_shard=True)


CASE = Case(
    words="digits in three shards, one for each worker; in one of them the classes are off by one line",
    cause="bad-shard",
    sick=sick,
    healthy=healthy,
)
