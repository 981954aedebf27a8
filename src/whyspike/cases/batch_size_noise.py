"""A healthy regression on heavy-tailed targets in batches of 4: some batches are far above the others by chance.

The noise of the targets has Student's t distribution with 2 degrees of freedom; the gradient is clipped, so that no
batch moves the network. The twin has batches of 128.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import Case
from whyspike.training import Training

FEATURES = 8


@cache
def heavy_tailed(n: int = 1024, seed: int = 0) -> TensorDataset:
    """Inputs (N, 8) and targets (N, 1): a linear signal, and the N quantiles of Student's t in a random order."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=draw)
    w = torch.randn(FEATURES, 1, generator=draw)
    p = (torch.randperm(n, generator=draw) + 0.5) / n
    noise = (2 * p - 1) / (2 * p * (1 - p)).sqrt()  # the quantile function for 2 degrees of freedom
    return TensorDataset(x, x @ w + noise[:, None])


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def training(batch_size: int, seed: int = 0, *, epochs: int = 16, lr: float = 0.003) -> Training:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))
    loader = DataLoader(
        heavy_tailed(), batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        loss_fn=squared_error,
        loader=loader,
        epochs=epochs,
        clip_grad_norm=1.0,
    )


def sick(seed: int = 0) -> Training:
    """The telling run."""
    return training(4, seed)


def healthy(seed: int = 0) -> Training:
    return training(128, seed, epochs=48)


CASE = Case(
    words="a healthy regression on heavy-tailed targets; in batches of 4 some losses are far above the others by chance",
    cause="batch-size-noise",
    sick=sick,
    healthy=healthy,
)
