"""One pass over a text, stopped after 120 steps and resumed; the loader begins the pass again.

Weights and optimizer are restored, the place in the data is not: the next 120 batches are those that the network has
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

STOP = 120  # steps
PASS = 300
Words = tuple[torch.Tensor, torch.Tensor]


class ShuffledBatches:
    """The batches of one shuffled pass, from some batch on."""

    def __init__(self, n: int, batch_size: int, seed: int, first: int) -> None:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.batches = [b.tolist() for b in order.split(batch_size)][first:]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def cross_entropy(model: nn.Module, batch: Words) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training(seed: int, vary: Vary, *, remembers_its_place: bool) -> Loop:
    torch.manual_seed(seed)
    size = vary.of(96, vary.batch_size)
    data = next_words(size * vary.of(PASS, vary.n), seed)
    stop = vary.of(STOP, vary.n)
    model = NextWord(vary.of(32, vary.width))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02 * vary.lr)

    def batches(first: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(data, batch_sampler=ShuffledBatches(len(data), size, seed, first))

    def train(rec: Recorder, batch: Words) -> None:
        loss = cross_entropy(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rec.step(loss)

    def body(rec: Recorder) -> None:
        for index, batch in enumerate(rec.batches(batches(0)), 1):
            train(rec, batch)
            if index == stop:
                break  # the job is stopped here
        checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model.load_state_dict(checkpoint[0])
        optimizer.load_state_dict(checkpoint[1])
        for batch in rec.batches(batches(stop if remembers_its_place else 0)):
            train(rec, batch)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return training(seed, vary, remembers_its_place=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return training(seed, vary, remembers_its_place=True)


CASE = Case(
    words="one pass over a text, stopped and resumed after 120 steps; the loader begins the pass again",
    cause="resume-data-replay",
    sick=sick,
    healthy=healthy,
)
