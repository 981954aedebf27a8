"""Odd and even noisy digits, with a binary cross-entropy that is written by hand.

log(1 - p) is infinite as soon as the network is certain enough that p is rounded to 1, and 0 * inf is NaN: it happens
on a sample that it is right about. In the healthy twin the same loss is computed from the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import noisy_digits
from whyspike.seams import LossFn
from whyspike.training import Training

Batch = tuple[torch.Tensor, torch.Tensor]


def by_hand(model: nn.Module, batch: Batch) -> torch.Tensor:
    images, odd = batch
    p = torch.sigmoid(model(images)[:, 0])
    return -(odd * torch.log(p) + (1 - odd) * torch.log(1 - p)).mean()


def from_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    images, odd = batch
    return F.binary_cross_entropy_with_logits(model(images)[:, 0], odd)


def _training(seed: int, vary: Vary, loss_fn: LossFn) -> Training:
    size = vary.of(64, vary.batch_size)
    pixels, classes = noisy_digits(1250 * size, 1.0).tensors
    torch.manual_seed(seed)
    hidden = vary.of(128, vary.width, 8)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr, momentum=0.9),
        loss_fn=loss_fn,
        loader=DataLoader(
            TensorDataset(pixels, (classes % 2).float()),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, by_hand)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, from_logits)


CASE = Case(
    words="odd and even noisy digits, with a binary cross-entropy written by hand",
    cause="unstable-cross-entropy",
    sick=sick,
    healthy=healthy,
)
