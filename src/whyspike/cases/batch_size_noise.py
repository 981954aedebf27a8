"""A healthy regression on heavy-tailed targets in batches of 8: some batches are far above the others by chance.

The tail of the targets' noise falls as a power of 1.3; the gradient is clipped and the learning rate falls to zero, so
that no batch moves the network. The twin has batches of 128.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

FEATURES = 8
POWER = 1.3  # of the tail of the noise


@cache
def heavy_tailed(n: int = 1024, seed: int = 0) -> TensorDataset:
    """Inputs (N, 8) and targets (N, 1): a linear signal, and quantiles of a heavy-tailed law in random order."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=draw)
    w = torch.randn(FEATURES, 1, generator=draw)
    p = (torch.randperm(n, generator=draw) + 0.5) / n
    tail = 2 * torch.minimum(p, 1 - p)
    noise = (p - 0.5).sign() * (tail ** (-1 / POWER) - 1)
    return TensorDataset(x, 4 + x @ w + noise[:, None])


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def training(batches: int, seed: int = 0, vary: Vary = PLAIN, *, epochs: int = 32, lr: float = 0.05) -> Training:
    """The regression, in so many times 8 samples."""
    torch.manual_seed(seed)
    small, width = vary.of(8, vary.batch_size), vary.of(32, vary.width)
    data = heavy_tailed(16 * small * vary.of(8, vary.n / vary.batch_size))  # full batches, in both of its sizes
    batch_size = small * batches
    model = nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr * vary.lr)
    steps = epochs * len(data) // batch_size
    return Training(
        model=model,
        optimizer=optimizer,
        loss_fn=squared_error,
        loader=DataLoader(data, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)),
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        clip_grad_norm=1.0,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    """The telling run."""
    return training(1, seed, vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(16, seed, vary)


CASE = Case(
    words="a healthy regression on heavy-tailed targets; in batches of 8 some are far above the others by chance",
    cause="batch-size-noise",
    sick=sick,
    healthy=healthy,
)
