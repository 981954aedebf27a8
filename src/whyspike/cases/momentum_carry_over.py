"""A digit classifier that meets a garbled image now and then; momentum carries its gradient on.

12,000 digits with a little noise, in batches of 16, twice. Ten of them are garbled: random bright pixels, a class by
chance. The gradient of a garbled image is applied again in the steps that follow, so that the damage grows after the
step itself. The root cause is the image; what makes one bad step into a bump of twenty is the momentum. In the healthy
twin those images are ordinary.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import Case
from whyspike.cases._data import digits
from whyspike.training import Training

N, BATCH = 12_000, 16
GARBLED = 10
BRIGHT = 40.0  # times an ordinary pixel


@cache
def noisy_digits(garbled: int, seed: int = 0) -> TensorDataset:
    """Pixels (12000, 64) and classes (12000,); the first `garbled` images are no digits."""
    draw = torch.Generator().manual_seed(seed)
    pixels, classes = digits(1797).tensors
    pick = torch.randint(len(pixels), (N,), generator=draw)
    pixels, classes = pixels[pick] + 0.3 * torch.randn(N, 64, generator=draw), classes[pick]
    pixels[:garbled] *= BRIGHT
    classes[:garbled] = torch.randint(10, (GARBLED,), generator=draw)[:garbled]
    return TensorDataset(pixels, classes)


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, classes = batch
    return F.cross_entropy(model(images), classes, label_smoothing=0.1)


def training(garbled: int, seed: int = 0, *, epochs: int = 2, lr: float = 0.02) -> Training:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    loader = DataLoader(
        noisy_digits(garbled), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=loader,
        epochs=epochs,
    )


def sick(seed: int = 0) -> Training:
    return training(GARBLED, seed)


def healthy(seed: int = 0) -> Training:
    return training(0, seed)


CASE = Case(
    words="a digit classifier that meets a garbled image now and then, whose gradient the momentum carries on",
    cause="momentum-carry-over",
    also_true=("outlier-sample",),
    sick=sick,
    healthy=healthy,
)
