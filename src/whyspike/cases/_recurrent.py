"""Noisy digits, read as 16 times 4 pixels by a plain recurrent network whose gradients explode at times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import Vary
from whyspike.cases._data import noisy_digits

LENGTH, BATCH, WIDTH, STEPS = 16, 32, 32, 550
NOISE, LR, LIMIT = 0.5, 0.1, 0.25  # LIMIT: of the gradient's norm, whose median is 2.5
GAIN = 1.4  # of the recurrent matrix at the begin: a gradient may grow on its way back through time
Batch = tuple[torch.Tensor, torch.Tensor]


class Recurrent(nn.Module):
    """Scores (B, 10) of sequences (B, LENGTH, 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(64 // LENGTH, width, batch_first=True)
        self.out = nn.Linear(width, 10)
        nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), GAIN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def recurrent(seed: int, vary: Vary) -> Recurrent:
    torch.manual_seed(seed)
    return Recurrent(vary.of(WIDTH, vary.width, 16))


def loader(seed: int, vary: Vary) -> DataLoader:
    """Every sample once."""
    size = vary.of(BATCH, vary.batch_size, 8)
    pixels, classes = noisy_digits(size * vary.of(STEPS, vary.n), NOISE, seed).tensors
    data = TensorDataset(pixels.view(-1, LENGTH, 64 // LENGTH), classes)
    return DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))
