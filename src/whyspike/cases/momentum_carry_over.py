"""A digit classifier that meets a garbled batch now and then; momentum carries its gradient on.

179,200 digits with a little noise, once, in batches of 128, shard by shard. One batch of each shard but the first is
garbled: all its images are too bright, and their classes wrong. Its gradient is applied again in the steps that follow,
so that the damage grows after the step itself: what makes one bad step into a bump of twenty is the momentum. No single
image is to blame. In the healthy twin those batches are ordinary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

SHARDS, STEPS, BATCH = 14, 100, 128  # shards, batches of each, samples of those
SMOOTHING = 0.1
BRIGHT = 6.0  # times an ordinary pixel


@cache
def noisy_digits(shard: int, batch_size: int, *, garbled: bool, seed: int = 0) -> TensorDataset:
    """Pixels (N, 64) and classes (N,), shard by shard; when garbled, the first batch of each shard but the first is.

    The first shard is clean so that the run has a level before its first event.
    """
    draw = torch.Generator().manual_seed(seed)
    pixels, classes = digits(1797).tensors
    pick = torch.randint(len(pixels), (SHARDS * shard,), generator=draw)
    pixels, classes = pixels[pick].add_(torch.randn(len(pick), 64, generator=draw), alpha=0.3), classes[pick]
    if garbled:
        bad = torch.cat([k * shard + torch.arange(batch_size) for k in range(1, SHARDS)])
        pixels[bad] *= BRIGHT
        classes[bad] = (classes[bad] + torch.randint(1, 10, (len(bad),), generator=draw)) % 10
    return TensorDataset(pixels, classes)


class ShardByShard(Sampler[int]):
    """One shard of the data after the other, shuffled inside; its first batch stays together, anywhere in it."""

    def __init__(self, shard: int, batch_size: int, seed: int) -> None:
        self.shard, self.batch_size, self.draw = shard, batch_size, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return SHARDS * self.shard

    def __iter__(self) -> Iterator[int]:
        for shard in range(SHARDS):
            others = self.batch_size + torch.randperm(self.shard - self.batch_size, generator=self.draw)
            at = self.batch_size * int(torch.randint(1, self.shard // self.batch_size - 1, (), generator=self.draw))
            rows = torch.cat([others[:at], torch.arange(self.batch_size), others[at:]])
            yield from (shard * self.shard + rows).tolist()


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, classes = batch
    return F.cross_entropy(model(images), classes, label_smoothing=SMOOTHING)


def training(*, garbled: bool, seed: int = 0, vary: Vary = PLAIN, lr: float = 0.02) -> Training:
    torch.manual_seed(seed)
    batch_size, width = vary.of(BATCH, vary.batch_size), vary.of(128, vary.width)
    shard = batch_size * vary.of(STEPS, vary.n / vary.batch_size)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr * vary.lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(
            noisy_digits(shard, batch_size, garbled=garbled),
            batch_size=batch_size,
            sampler=ShardByShard(shard, batch_size, seed),
        ),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=True, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=False, seed=seed, vary=vary)


CASE = Case(
    words="a digit classifier that meets a garbled batch now and then, whose gradient the momentum carries on",
    cause="momentum-carry-over",
    sick=sick,
    healthy=healthy,
)
