"""Noisy digits and a network with BatchNorm, whose running statistics average over a thousand steps.

A momentum of .999 is an old default of TensorFlow, which is .001 in torch: after a few hundred steps the statistics are
still mostly the 0 and 1 that they began with. Training does not notice; every evaluation does. The healthy twin has
torch's default of .1.
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


def _training(seed: int, vary: Vary, momentum: float) -> Training:
    size, hidden = vary.of(64, vary.batch_size), vary.of(64, vary.width, 8)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, hidden),
        nn.BatchNorm1d(hidden, momentum=momentum),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden, momentum=momentum),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
    held_out = NoisyDigits(512, noise=1.0, seed=1)
    images, classes = map(torch.stack, zip(*held_out.__getitems__(list(range(512))), strict=True))

    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()
        try:
            with torch.no_grad():
                return {"val_loss": float(F.cross_entropy(model(images), classes))}
        finally:
            model.train()

    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(
            NoisyDigits(vary.of(30, vary.n / vary.batch_size) * size, noise=1.0),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=10,
        evaluate=evaluate,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, 0.001)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, 0.1)


CASE = Case(
    words="noisy digits and a network with BatchNorm, whose running statistics average over a thousand steps",
    cause="train-eval-mode-mismatch",
    sick=sick,
    healthy=healthy,
)
