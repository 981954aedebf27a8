"""Sequences of very different lengths in micro-batches of one length each; the mean of the micro-batch means.

A small next-token model on synthetic sequences: the first token is any of 32, every later one follows from the one
before but for three in a thousand. So a long sequence has a small loss per token, and a short one a large one.
Micro-batches hold sequences of one length (as length-grouped loaders make them), one in 400 of them short ones, and
four make a step. The loop takes the mean over the tokens of each micro-batch and the mean of the four: eight tokens
count as much as 320. In the healthy twin every token of the step counts the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from whyspike.case import PLAIN, Case, Loop, Vary

if TYPE_CHECKING:
    from whyspike.record import Recorder

VOCABULARY, LONG, SHORT, SLIPS = 32, 80, 2, 0.003
MICRO, ACCUMULATE, STEPS, EPOCHS = 4, 4, 100, 12  # STEPS per epoch
IGNORED = -100
Batch = tuple[torch.Tensor, torch.Tensor]


@cache
def sequences(n_long: int, n_short: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Token sequences of 80 and of 2 tokens, the long ones first."""
    draw = torch.Generator().manual_seed(seed)
    following = torch.randperm(VOCABULARY, generator=draw)
    made = []
    for length in (LONG,) * n_long + (SHORT,) * n_short:
        tokens = [int(torch.randint(VOCABULARY, (), generator=draw))]
        slips = torch.rand(length, generator=draw) < SLIPS
        others = torch.randint(VOCABULARY, (length,), generator=draw)
        for k in range(1, length):
            tokens.append(int(others[k] if slips[k] else following[tokens[-1]]))
        made.append(torch.tensor(tokens))
    return tuple(made)


class Sequences(Dataset[torch.Tensor]):
    """One sequence of tokens each."""

    def __init__(self, rows: tuple[torch.Tensor, ...]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.rows[i]


class ByLength(Sampler[list[int]]):
    """Micro-batches of one length each, in a new order every epoch."""

    def __init__(self, n_long: int, n_short: int, size: int, seed: int) -> None:
        self.n_long, self.n_short, self.size = n_long, n_short, size
        self.draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n_long // self.size + self.n_short // self.size

    def __iter__(self) -> Iterator[list[int]]:
        long = torch.randperm(self.n_long, generator=self.draw).tolist()
        short = (self.n_long + torch.randperm(self.n_short, generator=self.draw)).tolist()
        groups = [rows[k : k + self.size] for rows in (long, short) for k in range(0, len(rows), self.size)]
        for k in torch.randperm(len(groups), generator=self.draw).tolist():
            yield groups[k]


def padded(rows: list[torch.Tensor]) -> Batch:
    """The token before (0 at the start, tokens from 1), and the token, both (B, longest); padding is ignored."""
    longest = max(map(len, rows))
    before = torch.zeros(len(rows), longest, dtype=torch.long)
    tokens = torch.full((len(rows), longest), IGNORED)
    for k, row in enumerate(rows):
        before[k, 1 : len(row)] = row[:-1] + 1
        tokens[k, : len(row)] = row
    return before, tokens


def mean_over_tokens(model: nn.Module, batch: Batch) -> torch.Tensor:
    before, tokens = batch
    return F.cross_entropy(model(before).flatten(0, 1), tokens.flatten(), ignore_index=IGNORED)


def loop(seed: int, vary: Vary, *, by_tokens: bool) -> Loop:
    torch.manual_seed(seed)
    width = vary.of(32, vary.width, 8)
    model = nn.Sequential(
        nn.Embedding(VOCABULARY + 1, width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, VOCABULARY)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 * vary.lr)
    size = vary.of(MICRO, vary.batch_size, 2)
    groups = ACCUMULATE * vary.of(STEPS, vary.n, 15)
    short = max(1, groups // 400)
    data = Sequences(sequences(size * (groups - short), size * short))
    sampler = ByLength(size * (groups - short), size * short, size, seed)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=padded)

    def body(rec: Recorder) -> None:
        for _ in range(EPOCHS):
            window: list[Batch] = []
            for batch in rec.batches(loader):
                window.append(batch)
                if len(window) < ACCUMULATE:
                    continue
                optimizer.zero_grad()
                counts = [int((tokens != IGNORED).sum()) for _, tokens in window]
                total = torch.zeros(())
                for one, n in zip(window, counts, strict=True):
                    share = n / sum(counts) if by_tokens else 1 / ACCUMULATE
                    loss = mean_over_tokens(model, one) * share
                    loss.backward()
                    total += loss.detach()
                optimizer.step()
                rec.step(total)
                window = []

    return Loop(model=model, optimizer=optimizer, loss_fn=mean_over_tokens, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, by_tokens=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, by_tokens=True)


CASE = Case(
    words="sequences of very different lengths; the mean of the means over the tokens of four micro-batches",
    cause="grad-accum-normalization",
    sick=sick,
    healthy=healthy,
)
