"""A text classifier that is fine-tuned for three epochs on labels that can only be remembered.

Pieces of Python's help texts get one of sixteen labels at random, as a code that belongs to a name: nothing about them
can be learnt but by heart. The classifier looks up the n-grams of a piece in a table (as fastText does) and sums the
scores that it finds. The table is large enough that one look at a piece is remembered. The twin never sees a piece
twice: each of its epochs holds new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

LENGTH = 24  # characters of a piece
ORDERS = (7, 8, 9, 10)
CLASSES = 16
EPOCHS = 3


@cache
def pieces(buckets: int) -> torch.Tensor:
    """The buckets of the n-grams of every piece of CPython's help texts, int64 [pieces, n-grams]."""
    from pydoc_data.topics import topics

    words = " ".join("".join(c if c.isalnum() else " " for c in topics[name]) for name in sorted(topics)).split()
    text = torch.tensor(list(" ".join(words).encode()), dtype=torch.int64)
    value, found = torch.zeros_like(text), []
    for n in range(1, max(ORDERS) + 1):
        value = value * 1_000_003 + torch.roll(text, 1 - n)
        if n in ORDERS:
            places = (value * 2_654_435_761 + n).remainder(buckets)
            found.append(places.unfold(0, LENGTH, LENGTH)[:, : LENGTH - n + 1])
    return torch.cat(found, dim=1)


class Parts(Sampler[int]):
    """Each epoch goes once through `size` samples in random order: always the same ones, or the next ones each time."""

    def __init__(self, size: int, seed: int, *, anew: bool) -> None:
        self.size, self.anew, self.epoch = size, anew, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        first = self.size * self.epoch if self.anew else 0
        self.epoch += 1
        return iter((first + torch.randperm(self.size, generator=self.generator)).tolist())


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    grams, labels = batch
    return F.cross_entropy(model(grams), labels)


def _training(seed: int, vary: Vary, *, anew: bool) -> Training:
    torch.manual_seed(seed)
    batch_size = vary.of(32, vary.batch_size, 8)
    size = vary.of(60, vary.n, 40) * batch_size
    grams = pieces(vary.of(65_536, vary.width, 16_384))
    chosen = torch.randperm(len(grams))[: size * EPOCHS]
    data = TensorDataset(grams[chosen], torch.randint(CLASSES, (len(chosen),)))
    model = nn.EmbeddingBag(vary.of(65_536, vary.width, 16_384), CLASSES, mode="sum")
    nn.init.normal_(model.weight, std=0.01)
    return Training(
        model=model,
        # a step that moves the scores of a piece as far whatever the batch size
        optimizer=torch.optim.SGD(model.parameters(), lr=0.012 * batch_size * vary.lr),
        loss_fn=loss_fn,
        loader=DataLoader(data, batch_size=batch_size, sampler=Parts(size, seed, anew=anew)),
        epochs=EPOCHS,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    """The telling run."""
    return _training(seed, vary, anew=False)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return _training(seed, vary, anew=True)


CASE = Case(
    words="a text classifier that learns labels by heart, for three epochs",
    cause="memorization-step",
    sick=sick,
    healthy=healthy,
)
