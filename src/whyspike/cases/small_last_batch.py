"""A regression with noisy targets whose last batch of an epoch has two samples.

N = 66562 and B = 1024 leave two samples. The loss is an ordinary mean, so nothing is wrong with its scale: the gradient
of two noisy samples is sqrt(512) = 23 times noisier than that of a batch, and the optimizer takes a full step on it.
The healthy twin has two samples fewer.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

FEATURES = 16


@cache
def noisy_targets(n: int, seed: int = 0) -> TensorDataset:
    """Inputs (N, 16) and targets (N, 1): three squashed projections and noise of standard deviation 1."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=draw)
    w = torch.randn(FEATURES, 3, generator=draw) / FEATURES**0.5
    y = torch.tanh(2 * x @ w).sum(1, keepdim=True) + torch.randn(n, 1, generator=draw)
    return TensorDataset(x, y)


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def training(*, left: int, seed: int = 0, vary: Vary = PLAIN, epochs: int = 13, lr: float = 0.08) -> Training:
    """The regression, on so many samples more than fill the batches."""
    torch.manual_seed(seed)
    first, second = vary.of(128, vary.width), vary.of(64, vary.width)
    model = nn.Sequential(
        nn.Linear(FEATURES, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, 1)
    )
    batch_size = vary.of(1024, vary.batch_size)
    data = noisy_targets(vary.of(65, vary.n / vary.batch_size) * batch_size + left)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr * vary.lr, momentum=0.9),
        loss_fn=squared_error,
        loader=loader,
        epochs=epochs,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(left=2, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(left=0, seed=seed, vary=vary)


CASE = Case(
    words="a regression with noisy targets; 66562 samples in batches of 1024 leave a last batch of two",
    cause="small-last-batch",
    also_true=("momentum-carry-over",),
    sick=sick,
    healthy=healthy,
)
