"""A digit classifier that meets a garbled image now and then; momentum carries its gradient on.

179,200 digits with a little noise, once, in batches of 128, shard by shard. One image of each shard but the first is
garbled: far too bright, with a wrong class. Its gradient is applied again in the steps that follow, so that the damage
grows after the step itself. The root cause is the image; what makes one bad step into a bump of twenty is the momentum.
In the healthy twin those images are ordinary.
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
BRIGHT = 160.0  # times an ordinary pixel


@cache
def noisy_digits(shard: int, *, garbled: bool, seed: int = 0) -> TensorDataset:
    """Pixels (N, 64) and classes (N,), shard by shard; when garbled, the first image of each shard but the first is.

    The first shard is clean so that the run has a level before its first event.
    """
    draw = torch.Generator().manual_seed(seed)
    pixels, classes = digits(1797).tensors
    pick = torch.randint(len(pixels), (SHARDS * shard,), generator=draw)
    pixels, classes = pixels[pick].add_(torch.randn(len(pick), 64, generator=draw), alpha=0.3), classes[pick]
    wrong = (classes[shard::shard] + torch.randint(1, 10, (SHARDS - 1,), generator=draw)) % 10
    if garbled:
        pixels[shard::shard] *= BRIGHT
        classes[shard::shard] = wrong
    return TensorDataset(pixels, classes)


class ShardByShard(Sampler[int]):
    """One shard of the data after the other, shuffled inside."""

    def __init__(self, shard: int, seed: int) -> None:
        self.shard, self.draw = shard, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return SHARDS * self.shard

    def __iter__(self) -> Iterator[int]:
        for shard in range(SHARDS):
            yield from (shard * self.shard + torch.randperm(self.shard, generator=self.draw)).tolist()


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
            noisy_digits(shard, garbled=garbled), batch_size=batch_size, sampler=ShardByShard(shard, seed)
        ),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=True, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=False, seed=seed, vary=vary)


CASE = Case(
    words="a digit classifier that meets a garbled image now and then, whose gradient the momentum carries on",
    cause="momentum-carry-over",
    also_true=("outlier-sample",),
    sick=sick,
    healthy=healthy,
)
