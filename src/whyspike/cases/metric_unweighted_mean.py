"""Digits whose loss of an epoch is logged as the mean of its batches' means, though the last batch has 12 images.

The twin weights each batch by its images. Both train alike; only the logged number differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import digits
from whyspike.record import Recorder

LAST = 12  # images of the last batch


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, weighted: bool, epochs: int = 20) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(32, vary.width)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr)
    batch_size = vary.of(128, vary.batch_size, 16)
    full = min(1797 - LAST, vary.of(1408, vary.n)) // batch_size * batch_size
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(digits(full + LAST), batch_size=batch_size, shuffle=True, generator=order)

    def body(rec: Recorder) -> None:
        for _ in range(epochs):
            total = count = 0.0
            for batch in rec.batches(loader):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                n = len(batch[0]) if weighted else 1
                total, count = total + n * loss.item(), count + n
                rec.step(loss)
            rec.log(epoch_loss=total / count)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, weighted=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, weighted=True)


CASE = Case(
    words="digits whose epoch loss is logged as the mean of batch means; the last batch has 12 images",
    cause="metric-unweighted-mean",
    sick=sick,
    healthy=healthy,
)
