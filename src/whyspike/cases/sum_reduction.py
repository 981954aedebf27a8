"""A digit classifier whose loss is a sum over the batch; the last batch of an epoch has 2 images instead of 32.

The healthy twin takes the mean and a learning rate that is 32 times as large: the same steps on full batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

BATCH = 32
N = 1792  # 56 batches of 32; 2 images are added to it
DIGITS = 1797  # there are no more
Batch = tuple[torch.Tensor, torch.Tensor]


def mean_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    images, classes = batch
    return F.cross_entropy(model(images), classes, label_smoothing=0.1)


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The fault: grows with the number of images."""
    images, classes = batch
    return F.cross_entropy(model(images), classes, label_smoothing=0.1, reduction="sum")


def training(*, summed: bool, seed: int = 0, vary: Vary = PLAIN, epochs: int = 10, lr: float = 0.02) -> Training:
    """The classifier's training. `lr` is that of the mean."""
    torch.manual_seed(seed)
    batch_size, width, lr = vary.of(BATCH, vary.batch_size), vary.of(48, vary.width), lr * vary.lr
    n = min(vary.of(N, vary.n), DIGITS - 2) // batch_size * batch_size + 2
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    loader = DataLoader(digits(n), batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr / batch_size if summed else lr, momentum=0.9),
        loss_fn=summed_loss if summed else mean_loss,
        loader=loader,
        epochs=epochs,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(summed=True, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(summed=False, seed=seed, vary=vary)


CASE = Case(
    words="a digit classifier whose loss is a sum over the batch; the last batch has 2 images instead of 32",
    cause="sum-reduction",
    sick=sick,
    healthy=healthy,
)
