"""A text in two shards, each read once; the job is stopped inside the second one, and its loader begins that again.

Weights and optimizer are restored, the place in the data is not: the next 80 batches are those that the network has
just been trained on. It remembers them, and its loss is low until they are through. The healthy twin goes on with the
batches that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._text import NextWord, next_words
from whyspike.record import Recorder

SHARDS = 2
SHARD = 160  # steps
STOP = 80  # of the second shard
Words = tuple[torch.Tensor, torch.Tensor]


class ShuffledShard:
    """The shuffled batches of one of several equal stretches of the data, from some batch on."""

    def __init__(self, shard: int, n_batches: int, batch_size: int, seed: int, first: int) -> None:
        n = n_batches * batch_size
        order = shard * n + torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.batches = [b.tolist() for b in order.split(batch_size)][first:]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def cross_entropy(model: nn.Module, batch: Words) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, *, remembers_its_place: bool) -> Loop:
    torch.manual_seed(seed)
    size, steps, stop = vary.of(64, vary.batch_size), vary.of(SHARD, vary.n), vary.of(STOP, vary.n)
    data = next_words(SHARDS * steps * size, seed)
    model = NextWord(vary.of(32, vary.width))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02 * vary.lr)

    def batches(shard: int, first: int = 0) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(data, batch_sampler=ShuffledShard(shard, steps, size, seed, first))

    def train(rec: Recorder, batch: Words) -> None:
        loss = cross_entropy(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rec.step(loss)

    def body(rec: Recorder) -> None:
        for batch in rec.batches(batches(0)):
            train(rec, batch)
        for index, batch in enumerate(rec.batches(batches(1)), 1):
            train(rec, batch)
            if index == stop:
                break  # the job is stopped here
        checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model.load_state_dict(checkpoint[0])
        optimizer.load_state_dict(checkpoint[1])
        for batch in rec.batches(batches(1, stop if remembers_its_place else 0)):
            train(rec, batch)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return training(seed, vary, remembers_its_place=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return training(seed, vary, remembers_its_place=True)


CASE = Case(
    words="a text in two shards; stopped inside the second one and resumed, the loader begins it again",
    cause="resume-data-replay",
    sick=sick,
    healthy=healthy,
)
