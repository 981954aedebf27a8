"""Digits; the job is interrupted now and then, and its checkpoints hold the weights but not the optimizer's state.

Adam at 3e-3 on a tanh network, until the loss is near 1e-4. At every restart the weights are loaded, and the optimizer
begins anew: its first steps are as large as the learning rate allows, however small the gradients are by then. In the
healthy twin the optimizer's state is loaded as well.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import digits

if TYPE_CHECKING:
    from whyspike.record import Recorder

BATCH, EPOCHS, RESTART = 128, 176, 16  # a restart every 16 epochs
Batch = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(seed: int, vary: Vary, *, saves_optimizer: bool) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(64, vary.width, 16)
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))

    def fresh() -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.003 * vary.lr)

    optimizer = fresh()
    loader = DataLoader(
        digits(min(1797, vary.of(1792, vary.n, 512))),
        batch_size=vary.of(BATCH, vary.batch_size, 16),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )

    def restart() -> None:
        saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"] if saves_optimizer else fresh().state_dict())

    def body(rec: Recorder) -> None:
        for epoch in range(EPOCHS):
            if epoch and epoch % RESTART == 0:
                restart()
            for batch in rec.batches(loader):
                loss = cross_entropy(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, saves_optimizer=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, saves_optimizer=True)


CASE = Case(
    words="digits with Adam; every restart loads the weights but not the optimizer's state",
    cause="resume-without-state",
    sick=sick,
    healthy=healthy,
)
