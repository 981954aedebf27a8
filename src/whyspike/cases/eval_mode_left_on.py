"""Noisy digits with dropout; the model is in train mode only until the first evaluation of each epoch.

`model.train()` is called once per epoch, and an evaluation in its middle calls `model.eval()`: the second half of every
epoch is trained without dropout, and its loss lies lower (vsepp, issue 4). In the healthy twin the evaluation switches
back.
"""

from __future__ import annotations

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

BATCH, STEPS, EPOCHS = 128, 100, 12  # STEPS per epoch
DROPOUT = 0.5
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, switches_back: bool) -> Loop:
    torch.manual_seed(seed)
    size, width = vary.of(BATCH, vary.batch_size, 8), vary.of(64, vary.width, 16)
    model = nn.Sequential(
        nn.Linear(64, 2 * width),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(2 * width, width),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(width, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * vary.lr, momentum=0.9)
    data = NoisyDigits(size * vary.of(STEPS, vary.n, 40), seed=seed)
    held_out = collate(NoisyDigits(512, seed=1).__getitems__(list(range(512))))
    loader = DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))

    def body(rec: Recorder) -> None:
        for _ in range(EPOCHS):
            model.train()
            for index, batch in enumerate(rec.batches(loader)):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                if index + 1 == len(loader) // 2:
                    with rec.evaluating():
                        model.eval()
                        with torch.no_grad():
                            rec.log(val_loss=cross_entropy(model, held_out))
                        if switches_back:
                            model.train()

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, switches_back=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, switches_back=True)


CASE = Case(
    words="noisy digits with dropout; model.eval() stays on after the first evaluation of each epoch",
    cause="eval-side-effects",
    sick=sick,
    healthy=healthy,
)
