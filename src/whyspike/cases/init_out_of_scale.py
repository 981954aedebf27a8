"""Noisy digits and a network whose last layer begins with weights of standard deviation 1.

Of 64 features that makes logits with a spread of about 4, so that the first loss is three times ln 10. In the healthy
twin the standard deviation is .02.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import NoisyDigits
from whyspike.training import Training


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _training(seed: int, vary: Vary, std: float) -> Training:
    size, hidden = vary.of(64, vary.batch_size), vary.of(96, vary.width, 32)
    torch.manual_seed(seed)
    head = nn.Linear(hidden, 10)
    nn.init.normal_(head.weight, std=std)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Tanh(), head)
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3 * vary.lr),
        loss_fn=cross_entropy,
        loader=DataLoader(
            NoisyDigits(vary.of(40, vary.n / vary.batch_size) * size, noise=1.5),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=8,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, 1.0)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, 0.02)


CASE = Case(
    words="noisy digits and a network whose last layer begins with weights of standard deviation 1",
    cause="init-out-of-scale",
    sick=sick,
    healthy=healthy,
)
