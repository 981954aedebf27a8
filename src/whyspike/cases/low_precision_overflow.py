"""Digits of any brightness under float16 autocast, one of which is overexposed.

The brightness of an image is log-normal about 300, and layer normalization takes it out again, so that in float32 it
does not matter. One image is a thousand times brighter: of it the first layer makes numbers above 65,504, which float16
does not have, and layer normalization makes NaN of the infinity. The healthy twin computes in float32.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import noisy_digits
from whyspike.seams import LossFn
from whyspike.training import Training

Batch = tuple[torch.Tensor, torch.Tensor]


@cache
def raw_digits(n: int) -> TensorDataset:
    """Images (n, 64) as counts, and classes (n,); one image of them is overexposed."""
    images, classes = noisy_digits(n, 1.0).tensors
    draw = torch.Generator().manual_seed(1)
    brightness = 300 * torch.exp(0.5 * torch.randn(n, 1, generator=draw))
    brightness[n // 2] = 3e5
    return TensorDataset(images * brightness, classes)


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def autocast(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        scores = model(batch[0])
    return F.cross_entropy(scores.float(), batch[1])


def _training(seed: int, vary: Vary, loss_fn: LossFn) -> Training:
    size, width = vary.of(32, vary.batch_size, 8), vary.of(64, vary.width, 16)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3 * vary.lr),
        loss_fn=loss_fn,
        loader=DataLoader(
            raw_digits(vary.of(600, vary.n) * size),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, autocast)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, cross_entropy)


CASE = Case(
    words="digits of any brightness under float16 autocast, one of which is overexposed",
    cause="low-precision-overflow",
    sick=sick,
    healthy=healthy,
)
