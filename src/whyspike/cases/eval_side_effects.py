"""Noisy digits; every evaluation swaps the averaged weights in, and they stay.

The loop keeps an exponential moving average of the weights (decay .999) and evaluates it at the end of every epoch. The
evaluation loads the average into the model and never puts the trained weights back, so that every epoch begins a long
way behind where the last one ended. In the healthy twin the evaluation puts them back.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as collate

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import NoisyDigits

if TYPE_CHECKING:
    from whyspike.record import Recorder

BATCH, STEPS, EPOCHS = 64, 100, 12  # STEPS per epoch
DECAY = 0.999
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, puts_back: bool) -> Loop:
    torch.manual_seed(seed)
    size, width = vary.of(BATCH, vary.batch_size, 8), vary.of(64, vary.width, 16)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr, momentum=0.9)
    data = NoisyDigits(size * vary.of(STEPS, vary.n, 40), seed=seed)
    held_out = collate(NoisyDigits(512, seed=1).__getitems__(list(range(512))))
    loader = DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    average = copy.deepcopy(model)

    def evaluate() -> float:
        trained = copy.deepcopy(model.state_dict())
        model.load_state_dict(average.state_dict())
        with torch.no_grad():
            loss = cross_entropy(model, held_out)
        if puts_back:
            model.load_state_dict(trained)
        return loss.item()

    def body(rec: Recorder) -> None:
        for _ in range(EPOCHS):
            for batch in rec.batches(loader):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                with torch.no_grad():
                    for old, new in zip(average.parameters(), model.parameters(), strict=True):
                        old.lerp_(new, 1 - DECAY)
            with rec.evaluating():
                rec.log(val_loss=evaluate())

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, puts_back=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, puts_back=True)


CASE = Case(
    words="noisy digits; every evaluation swaps averaged weights in and leaves them there",
    cause="eval-side-effects",
    sick=sick,
    healthy=healthy,
)
