"""Digits in a loop that logs the mean of the losses since the epoch began, as progress bars do.

The training is healthy: its loss falls, and the logged mean falls behind it, to catch up at every epoch's start. The
twin logs the loss of each step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import digits
from whyspike.record import Recorder


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, mean: bool, epochs: int = 12) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(32, vary.width)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr)
    batch_size = vary.of(32, vary.batch_size, 8)
    data = digits(vary.of(1400, vary.n) // batch_size * batch_size)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, generator=order)

    def body(rec: Recorder) -> None:
        for _ in range(epochs):
            total = 0.0
            for i, batch in enumerate(rec.batches(loader)):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
                rec.step(loss)
                rec.log(train_loss=total / (i + 1) if mean else loss.item())

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    """The telling run."""
    return loop(seed, vary, mean=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, mean=False)


CASE = Case(
    words="digits in a loop whose progress bar shows the mean of the losses since the epoch began",
    cause="running-mean-reset",
    sick=sick,
    healthy=healthy,
)
