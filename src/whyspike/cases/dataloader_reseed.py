"""Digits in random crops, by a generator that every worker copies anew in every epoch.

The dataset makes its generator when it is built. A worker process begins with a copy of it, and the workers are started
again for every epoch: the k-th sample of a worker is cropped alike in every epoch, and in every worker. A batch in
which many crops miss the digit is high at its place of the epoch again and again. In the healthy twin the generator of
each worker is made from the seed that torch gives it, another one in every epoch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, get_worker_info

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.cases.bad_shard import WorkerLoader, cross_entropy
from whyspike.training import Training

WORKERS = 2
MISSED = 0.08  # of the crops: four images of a batch of 48, as a rule, and eight or nine in some


class CroppedDigits(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The first n digits, each time with other noise; a few of the random crops miss the digit, and nothing is left."""

    def __init__(self, n: int, seed: int) -> None:
        self.images, self.classes = digits(n).tensors
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        missed = self.generator.random() < MISSED
        noise = torch.from_numpy(self.generator.standard_normal(64, dtype=np.float32))
        return (torch.zeros(64) if missed else self.images[i]) + 0.1 * noise, self.classes[i]


def reseed(worker: int) -> None:
    """Give a worker's copy of the dataset a generator of its own."""
    info = get_worker_info()
    assert info is not None
    info.dataset.generator = np.random.default_rng(torch.initial_seed())  # type: ignore[union-attr]


def training(seed: int, vary: Vary, *, reseeded: bool) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(48, vary.batch_size), vary.of(128, vary.width)
    n = min(1797, size * (vary.of(1400, vary.n) // size))
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=WorkerLoader(
            CroppedDigits(n, seed),
            batch_size=size,
            shuffle=True,
            drop_last=True,
            num_workers=WORKERS,
            worker_init_fn=reseed if reseeded else None,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=24,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, reseeded=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, reseeded=True)


CASE = Case(
    words="digits in random crops, by a generator that every worker copies anew in every epoch",
    cause="dataloader-reseed",
    sick=sick,
    healthy=healthy,
)
