"""Noisy digits and a network with BatchNorm, whose last batch of an epoch has two images.

Of two images BatchNorm makes +1 and -1 in every channel, whatever they show. The healthy twin has two fewer.
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
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def training(*, left: int, seed: int = 0, vary: Vary = PLAIN, epochs: int = 16) -> Training:
    """The digits, with so many images more than fill the batches."""
    size, hidden = vary.of(64, vary.batch_size), vary.of(64, vary.width, 8)
    steps = vary.of(24, vary.n / vary.batch_size)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(
            NoisyDigits(steps * size + left, noise=0.7),
            batch_size=size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=epochs,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(left=2, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(left=0, seed=seed, vary=vary)


CASE = Case(
    words="noisy digits and a network with BatchNorm; the last batch of an epoch has two images",
    cause="bn-small-batch",
    # A full batch removes it as well, and what follows the step is carried by the momentum.
    also_true=("small-last-batch", "momentum-carry-over"),
    sick=sick,
    healthy=healthy,
)
