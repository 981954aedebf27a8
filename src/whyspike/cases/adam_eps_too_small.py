"""Digits, learnt by heart: Adam goes on after the loss has come to nothing, with an eps of 1e-8.

360 digits in batches of 120 are all right after 300 steps. With beta2 = .95 the second moment forgets within 20 steps
how large gradients once were. When the loss is at 1e-8, sqrt(v) comes down to eps, rounding noise makes steps of full
length, and the loss is thrown up by a factor of a million, every few hundred steps. In the healthy twin eps is 1e-5: as
fast on its way down, and quiet there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

N, BATCH, STEPS = 360, 120, 15000


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, classes = batch
    return F.cross_entropy(model(images), classes)


def _digits(seed: int, vary: Vary, eps: float) -> Training:
    from sklearn.datasets import load_digits

    digits = load_digits()
    batch = vary.of(BATCH, vary.batch_size)
    n = vary.of(N // BATCH, vary.n / vary.batch_size) * batch
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(digits.target), generator=draw)[:n]
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32)[rows], torch.tensor(digits.target)[rows])
    torch.manual_seed(seed)
    hidden = vary.of(32, vary.width)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    loader = DataLoader(data, batch_size=batch, shuffle=True, generator=draw)
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2 * vary.lr, betas=(0.9, 0.95), eps=eps),
        loss_fn=cross_entropy,
        loader=loader,
        epochs=STEPS // len(loader),
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _digits(seed, vary, 1e-8)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _digits(seed, vary, 1e-5)


CASE = Case(
    words="digits learnt by heart, with Adam at beta2 = .95 and an eps of 1e-8, after the loss has come to nothing",
    cause="adam-eps-too-small",
    sick=sick,
    healthy=healthy,
)
