"""A regression with SGD whose batch size goes down and up again, at one learning rate.

Stages of batches of 128 samples and stages of 4, as when a run moves between machines of different memory. The noise of
a step grows 32-fold with each small stage, and the network is shaken off its level. In the healthy twin all stages have
large batches. (A learning rate that follows the batch size is no healthy twin: it jumps up where the batches do, and
the loss with it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._tabular import N, collate, network, squared_error, table

if TYPE_CHECKING:
    from whyspike.record import Recorder

LARGE, SMALL = 128, 4
LR, STAGES, STEPS = 0.08, 10, 150  # STEPS of large batches, half as many of small ones


def loop(seed: int, vary: Vary, *, ramps: bool) -> Loop:
    data = table(vary.of(N, vary.n, 4 * LARGE), seed, task="regression", noise=0.05)
    torch.manual_seed(seed)
    model = network(vary.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR * vary.lr)
    draw = torch.Generator().manual_seed(seed)
    large, small = vary.of(LARGE, vary.batch_size), vary.of(SMALL, vary.batch_size, 2)

    def loader(size: int, steps: int) -> DataLoader:
        samples = torch.utils.data.RandomSampler(data, replacement=True, num_samples=size * steps, generator=draw)
        return DataLoader(data, batch_size=size, sampler=samples, collate_fn=collate)

    def body(rec: Recorder) -> None:
        for stage in range(2 * STAGES):
            steps = STEPS // 2 if stage % 2 else STEPS
            size = small if ramps and stage % 2 else large
            for batch in rec.batches(loader(size, steps)):
                loss = squared_error(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)

    return Loop(model=model, optimizer=optimizer, loss_fn=squared_error, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, ramps=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, ramps=False)


CASE = Case(
    words="a regression whose batches go from 128 samples to 4 and back while the learning rate stays",
    cause="batch-size-ramp",
    sick=sick,
    healthy=healthy,
)
