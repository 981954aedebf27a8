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

SHARDS, SHARD, BATCH = 14, 12_800, 128
SMOOTHING = 0.1
BRIGHT = 160.0  # times an ordinary pixel


@cache
def noisy_digits(*, garbled: bool, seed: int = 0) -> TensorDataset:
    """Pixels (179200, 64) and classes (179200,); when garbled, the first image of every shard but the first is.

    The first shard is clean so that the run has a level before its first event.
    """
    draw = torch.Generator().manual_seed(seed)
    pixels, classes = digits(1797).tensors
    pick = torch.randint(len(pixels), (SHARDS * SHARD,), generator=draw)
    pixels, classes = pixels[pick].add_(torch.randn(len(pick), 64, generator=draw), alpha=0.3), classes[pick]
    wrong = (classes[SHARD::SHARD] + torch.randint(1, 10, (SHARDS - 1,), generator=draw)) % 10
    if garbled:
        pixels[SHARD::SHARD] *= BRIGHT
        classes[SHARD::SHARD] = wrong
    return TensorDataset(pixels, classes)


class ShardByShard(Sampler[int]):
    """One shard of the data after the other, shuffled inside."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return SHARDS * SHARD

    def __iter__(self) -> Iterator[int]:
        for shard in range(SHARDS):
            yield from (shard * SHARD + torch.randperm(SHARD, generator=self.draw)).tolist()


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, classes = batch
    return F.cross_entropy(model(images), classes, label_smoothing=SMOOTHING)


def training(*, garbled: bool, seed: int = 0, lr: float = 0.02) -> Training:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        loss_fn=cross_entropy,
        loader=DataLoader(noisy_digits(garbled=garbled), batch_size=BATCH, sampler=ShardByShard(seed)),
        epochs=1,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=True, seed=seed)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(garbled=False, seed=seed)


CASE = Case(
    words="a digit classifier that meets a garbled image now and then, whose gradient the momentum carries on",
    cause="momentum-carry-over",
    also_true=("outlier-sample",),
    sick=sick,
    healthy=healthy,
)
