"""Digits that lie in a file about sorted by class, and a loader that does not shuffle.

Each batch has two or three classes, always the same batches in the same order. The healthy twin shuffles.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases.shuffle_buffer import BufferSampler, cross_entropy, sorted_digits
from whyspike.training import Training


def training(seed: int, vary: Vary, *, shuffle: bool) -> Training:
    torch.manual_seed(seed)
    size, width = vary.of(32, vary.batch_size), vary.of(64, vary.width)
    n = min(1797, vary.of(1440, vary.n)) // size * size
    images, classes = sorted_digits(n, seed).tensors
    order = list(BufferSampler(n, n // 10, seed))
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr),
        loss_fn=cross_entropy,
        loader=DataLoader(
            TensorDataset(images[order], classes[order]),
            batch_size=size,
            shuffle=shuffle,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=14,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, shuffle=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, shuffle=True)


CASE = Case(
    words="digits about sorted by class, and a loader that does not shuffle",
    cause="fixed-order",
    sick=sick,
    healthy=healthy,
)
