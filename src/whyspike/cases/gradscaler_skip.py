"""Noisy digits under float16 autocast with a GradScaler, for somewhat more than its 2,000 steps.

The scaler comes down from 65,536 until the gradients fit into float16, tries twice as much after 2,000 steps, skips an
update, and goes back. That is how it is meant. In the healthy twin the factor is fixed well below the limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import NoisyDigits

if TYPE_CHECKING:
    from whyspike.record import Recorder

STEPS, LR = 2400, 0.006  # at .01 the first batches of 8 threw the network itself in some runs
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        scores = model(batch[0])
    return F.cross_entropy(scores.float(), batch[1])


def loop(seed: int, vary: Vary, scaler: torch.amp.GradScaler) -> Loop:
    torch.manual_seed(seed)
    size, width = vary.of(8, vary.batch_size, 4), vary.of(32, vary.width, 8)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR * vary.lr, momentum=0.9)
    loader = DataLoader(
        NoisyDigits(size * STEPS, noise=1.0, seed=seed),
        batch_size=size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )

    def body(rec: Recorder) -> None:
        for batch in rec.batches(loader):
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            rec.step(loss)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, scaler=scaler, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, torch.amp.GradScaler("cpu"))


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**9))


CASE = Case(
    words="noisy digits under float16 autocast with a GradScaler, which skips an update every 2,000 steps",
    cause="gradscaler-skip",
    sick=sick,
    healthy=healthy,
)
