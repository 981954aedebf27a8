"""Digits of which most have no label, in batches of 8: where none has one, the loss is 0 / 0.

The loop leaves the update out, as GradScaler does, and logs every ten steps as transformers' Trainer does: a loss that
is not finite is replaced by the mean of its window so far. In the twin nearly all images have a label.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import digits
from whyspike.record import Recorder

NO_LABEL = -100  # what cross_entropy ignores
EVERY = 10  # steps between two logged values


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=NO_LABEL)


def loop(seed: int, vary: Vary, *, unlabelled: float, epochs: int = 6) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(32, vary.width)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * vary.lr)
    batch_size = vary.of(8, vary.batch_size)
    pixels, classes = digits(vary.of(1400, vary.n) // batch_size * batch_size).tensors
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.rand(len(classes), generator=draw) < unlabelled
    data = TensorDataset(pixels, classes.masked_fill(hidden, NO_LABEL))
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, generator=draw)

    def body(rec: Recorder) -> None:
        total, since, step = 0.0, 0, 0
        for _ in range(epochs):
            for batch in rec.batches(loader):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                if math.isfinite(loss.item()):
                    optimizer.step()
                    total += loss.item()
                else:
                    total += total / (1 + since)
                since, step = since + 1, step + 1
                rec.step(loss)
                if step % EVERY == 0:
                    rec.log(train_loss=total / since)
                    total, since = 0.0, 0

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, unlabelled=0.6)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, unlabelled=0.1)


CASE = Case(
    words="digits, most of them without a label: some batches have none, their loss is nan, and the logger hides it",
    cause="nan-filtered-log",
    sick=sick,
    healthy=healthy,
)
