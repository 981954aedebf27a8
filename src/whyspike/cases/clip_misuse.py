"""A recurrent network whose gradients explode now and then, in a loop that clips them after the update.

The clipping is there, its limit is right, and it changes nothing: `optimizer.step()` comes first. In the healthy twin
the two lines are the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._recurrent import LIMIT, LR, cross_entropy, loader, recurrent

if TYPE_CHECKING:
    from whyspike.record import Recorder


def loop(seed: int, vary: Vary, *, late: bool) -> Loop:
    model = recurrent(seed, vary)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR * vary.lr)
    batches = loader(seed, vary)

    def body(rec: Recorder) -> None:
        for batch in rec.batches(batches):
            loss = cross_entropy(model, batch)
            optimizer.zero_grad()
            loss.backward()
            if late:
                optimizer.step()
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
                optimizer.step()
            rec.step(loss)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, late=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, late=False)


CASE = Case(
    words="a recurrent network whose gradients are clipped after the update",
    cause="clip-misuse",
    also_true=("exploding-gradients-rnn",),
    sick=sick,
    healthy=healthy,
)
