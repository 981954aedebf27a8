"""The log of a small language model whose batches are sorted by length inside mega-batches of 50.

Lines of Python's help texts, short and long, are predicted character by character; the sampler is that of Hugging
Face's Trainer with group_by_length. The log is a trainer's state with a value for every fifth step. The twin's batches
are drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from whyspike.case import PLAIN, Case, Log, Vary

MEGA_BATCH = 50  # batches
EVERY = 5  # steps between two values of the log
LONGEST = 120  # characters of a line
EPOCHS = 3


@cache
def lines() -> tuple[torch.Tensor, ...]:
    """The lines of CPython's help texts as bytes, each int64 [length]."""
    from pydoc_data.topics import topics

    found = [line.strip() for name in sorted(topics) for line in topics[name].splitlines()]
    return tuple(torch.tensor(list(line.encode()[:LONGEST]), dtype=torch.int64) for line in found if len(line) >= 4)


def grouped(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """Indices sorted by length, the longest first, inside mega-batches of 50 batches."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = MEGA_BATCH * batch_size
    return [
        index
        for first in range(0, len(order), size)
        for index in sorted(order[first : first + size], key=lambda i: lengths[i], reverse=True)
    ]


class Characters(nn.Module):
    """Predicts a character from the two before it and from its place in the line."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.here, self.before, self.place = (nn.Embedding(n, width) for n in (256, 256, LONGEST))
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(width, 256))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        before = F.pad(text, (1, 0))[:, :-1]
        place = torch.arange(text.shape[1]).expand_as(text)
        return self.head(self.here(text) + self.before(before) + self.place(place))


def _write(folder: Path, seed: int, vary: Vary, *, group: bool) -> Path:
    torch.manual_seed(seed)
    batch_size, steps = vary.of(8, vary.batch_size, 4), vary.of(260, vary.n, 205)
    text = lines()
    chosen = [text[i] for i in torch.randperm(len(text))[: steps * batch_size].tolist()]
    model = Characters(vary.of(32, vary.width, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3 * vary.lr)
    draw = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    waiting: list[float] = []
    step = 0
    for _ in range(EPOCHS):
        order = (
            grouped([len(t) for t in chosen], batch_size, draw)
            if group
            else torch.randperm(len(chosen), generator=draw).tolist()
        )
        for first in range(0, len(order), batch_size):
            batch = nn.utils.rnn.pad_sequence([chosen[i] for i in order[first : first + batch_size]], batch_first=True)
            scores, targets = model(batch[:, :-1]), batch[:, 1:]
            loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            waiting.append(loss.item())
            step += 1
            if step % EVERY == 0:
                mean = sum(waiting) / len(waiting)
                row = {"epoch": round(step / steps, 2), "learning_rate": 2e-3, "loss": round(mean, 4), "step": step}
                history.append(row)
                waiting.clear()
    path = folder / "trainer_state.json"
    state = {"epoch": step / steps, "global_step": step, "logging_steps": EVERY, "log_history": history}
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


def sick(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return Log(write=partial(_write, seed=seed, vary=vary, group=True))


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return Log(write=partial(_write, seed=seed, vary=vary, group=False))


CASE = Case(
    words="the log of a character model whose batches are sorted by length, 50 at a time",
    cause="length-grouped",
    sick=sick,
    healthy=healthy,
)
