"""Noisy digits in a loop whose zero_grad() stands outside of the inner loop: once per epoch.

Within an epoch every update goes along the sum of all gradients since its begin, so that the network swings ever more
widely. In the healthy twin zero_grad() is called before every backward pass.
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

BATCH, STEPS, EPOCHS, LR = 64, 100, 8, 0.02  # STEPS per epoch
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, every_step: bool) -> Loop:
    torch.manual_seed(seed)
    size, width = vary.of(BATCH, vary.batch_size, 8), vary.of(64, vary.width, 16)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR * vary.lr)
    data = NoisyDigits(size * vary.of(STEPS, vary.n, 40), seed=seed)
    loader = DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))

    def body(rec: Recorder) -> None:
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            for batch in rec.batches(loader):
                if every_step:
                    optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                rec.step(loss)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, every_step=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, every_step=True)


CASE = Case(
    words="noisy digits in a loop that calls zero_grad() once per epoch instead of once per update",
    cause="grads-not-zeroed",
    sick=sick,
    healthy=healthy,
)
