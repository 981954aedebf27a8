"""Cures as parts: a loss that does not depend on the batch size, samplers, clipping, and skipping a bad batch.

Each says when it is not the cure. What a diagnosis names as the cause decides, not this list; optimizers are in
`torch.optim` and in the package `pytorch_optimizer`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from whyspike.errors import BadTraining, UnreadableRun

log = logging.getLogger(__name__)


def per_unit(
    total: Callable[[Any, Any], torch.Tensor], units: Callable[[Any], Any]
) -> Callable[[Any, Any], torch.Tensor]:
    """A loss that is a sum over a batch's units (samples, boxes, tokens) divided by their number: once.

    Not where the loss is a mean already (dividing again is the fault itself), nor where samples are compared with each
    other (contrastive losses grow with the batch by their nature). Under gradient accumulation divide the sums by the
    units of the whole step instead.

    Args:
        total: `total(model, batch)` returns the sum over the units of the batch.
        units: `units(batch)` returns how many they are; a batch without any counts as one.
    """

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        count = units(batch)
        count = count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count)
        return total(model, batch) / count

    return loss_fn


class BlockedSampler(Sampler[int]):
    """Every sample once an epoch, shuffled within blocks that keep their place from one epoch to the next.

    The time since a sample was last trained on is then about one epoch everywhere, so that the epoch's own sawtooth
    (samples seen again soon at the start of an epoch, late at its end) has no room. Not where neighbours in the dataset
    are alike: a block of one class is a batch of one class; shuffle the dataset once first. Not for a curve alone: the
    sawtooth does no harm.

    Args:
        n: samples of the dataset.
        block: samples of a block; at least a few batches, so that batches are not the same in every epoch.
    """

    def __init__(self, n: int, block: int, *, generator: torch.Generator | None = None) -> None:
        _positive(n=n, block=block)
        self.n, self.block, self.generator = n, block, generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        for begin in range(0, self.n, self.block):
            size = min(self.block, self.n - begin)
            yield from (begin + torch.randperm(size, generator=self.generator)).tolist()


class WithReplacementSampler(Sampler[int]):
    """Every sample drawn at random from all, so that an epoch is no unit any more and nothing can repeat with it.

    Not where every sample must be seen: in n draws about 37 % of n samples are not drawn. Not where the last batch is
    small: n draws leave the same remainder.

    Args:
        n: samples of the dataset.
        draws: of an epoch; n when not given.
    """

    def __init__(self, n: int, draws: int | None = None, *, generator: torch.Generator | None = None) -> None:
        _positive(n=n, draws=n if draws is None else draws)
        self.n, self.draws, self.generator = n, n if draws is None else draws, generator

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        yield from torch.randint(self.n, (self.draws,), generator=self.generator).tolist()


def clip_threshold(path: str | Path, quantile: float = 0.5) -> float:
    """A `max_norm` for `clip_grad_norm_` out of the gradient norms that a run recorded.

    Clipping protects the weights from a rare large gradient; the plotted spike stays, and its cause. Not where most
    steps would be clipped for good: then it is a smaller learning rate in disguise. Norms fall while a training goes
    on, so that a threshold from its beginning clips nothing later.

    Args:
        path: a run folder that `whyspike.watch` wrote.
        quantile: of the recorded norms, over 0 and at most 1. The median is what the replays of a diagnosis use.

    Raises:
        UnreadableRun: there is no run, or it holds no gradient norm.
        BadTraining: the quantile is out of its range.
    """
    import numpy as np

    from whyspike.readers import read

    if not 0 < quantile <= 1:
        raise BadTraining(f"quantile={quantile} was given; it must be above 0 and at most 1")
    found = read(Path(path)).signals.get("gradient_norm")
    values = [] if found is None else [v for v in found.value.tolist() if math.isfinite(v)]
    if not values:
        raise UnreadableRun(f"{path} holds no gradient norm; watch(model, optimizer) records them")
    return float(np.quantile(values, quantile))


class SkipAndName:
    """Leave out the update of a batch that is not finite, or that was proven bad, and log which samples it had.

    Call it between `backward` and the update: `if skip(loss, ids): continue`. Not as a cure of every high loss: batches
    that are hard and right belong to the data, and without them another problem is learned. Not where it skips more
    than a few batches of an epoch: then it is no outlier. A skipped update leaves momentum and schedules as they were.

    Args:
        parameters: whose gradients must be finite.
        bad: dataset indices that a diagnosis named; a batch that holds one of them is skipped.
        say: is given one sentence for each skipped batch; a warning of the logger `whyspike.cures` when not given.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        *,
        bad: Iterable[int] = (),
        say: Callable[[str], Any] | None = None,
    ) -> None:
        self.parameters, self.bad = list(parameters), frozenset(int(i) for i in bad)
        self.skipped: list[tuple[int, ...]] = []  # the samples of every batch that was left out
        self._say = say or log.warning

    def __call__(self, loss: torch.Tensor, ids: Sequence[int] = ()) -> bool:
        """Whether to leave the update out; the gradients are then None.

        Args:
            loss: of the batch.
            ids: its dataset indices, where they are known.
        """
        named = sorted(self.bad.intersection(int(i) for i in ids))
        grads = [p.grad for p in self.parameters if p.grad is not None]
        finite = bool(torch.isfinite(loss.detach()).all()) and all(bool(torch.isfinite(g).all()) for g in grads)
        if finite and not named:
            return False
        for p in self.parameters:
            p.grad = None
        self.skipped.append(tuple(int(i) for i in ids))
        why = f"it holds the samples {named}" if named else "its loss or a gradient is not finite"
        self._say(f"update left out: {why}; its samples: {list(self.skipped[-1]) or 'not known'}")
        return True


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise BadTraining(f"{name}={count} was given; it must be at least 1")
