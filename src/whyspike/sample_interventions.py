"""Changes of what is in the batches around an event: other batches, one sample replaced or moved, samples left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.attribute import per_sample
from whyspike.interventions import Draw, Where, acts
from whyspike.seams import EpochContext, Intervention, LossFn, StepContext

DrawWith = Callable[[int, np.random.Generator], Any]  # draw(n, rng) returns a batch of n random training samples


class OtherBatches(Intervention):
    """Random training samples in every batch up to the event's step; what follows stays."""

    def __init__(self, draw: DrawWith, seed: int) -> None:
        self.draw, self.seed = draw, seed
        self.words = f"other batches up to the event (draw {seed + 1})"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.rng = np.random.default_rng(self.seed)

    def batch(self, at: StepContext, batch: Any) -> Any:
        before = at.event_step is not None and at.step <= at.event_step
        return self.draw(batches.size(batch), self.rng) if before else batch


class OtherSamples(Intervention):
    """Random training samples in one batch."""

    def __init__(self, draw: DrawWith, seed: int, where: Where) -> None:
        self.draw, self.seed = draw, seed
        self.where: Where = where
        self.words = f"other samples in the batch at {_offset(where)} (draw {seed + 1})"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.rng = np.random.default_rng(self.seed)

    def batch(self, at: StepContext, batch: Any) -> Any:
        return self.draw(batches.size(batch), self.rng) if acts(self.where, at) else batch


class SwapBatches(Intervention):
    """Train on one batch earlier, in place of another, which takes its place."""

    def __init__(self, early: int, late: int, batch_early: Any, batch_late: Any) -> None:
        self.early, self.late = early, late
        self._batches = {early: batch_late, late: batch_early}
        self.words = f"the batches at {_offset(early)} and {_offset(late)} swapped"

    def batch(self, at: StepContext, batch: Any) -> Any:
        for where, other in self._batches.items():
            if acts(where, at):
                return batches.clone(other)
        return batch


class ReplaceRow(Intervention):
    """One sample of a batch replaced by another training sample."""

    def __init__(self, row: int, draw: DrawWith, seed: int, where: Where, words: str) -> None:
        self.row, self.draw, self.seed, self.words = row, draw, seed, words
        self.where: Where = where

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.rng = np.random.default_rng(self.seed)

    def batch(self, at: StepContext, batch: Any) -> Any:
        return with_row(batch, self.row, self.draw(1, self.rng)) if acts(self.where, at) else batch


class ReplaceNamed(Intervention):
    """The samples that were named replaced by others wherever they are drawn, or with `beside` as many that were not.

    Args:
        rows: the rows of the named samples in the batches of some steps.
    """

    must_act = True

    def __init__(self, rows: Mapping[int, Sequence[int]], draw: Draw, words: str, *, beside: bool = False) -> None:
        self.rows, self.draw, self.words, self.beside = rows, draw, words, beside

    def batch(self, at: StepContext, batch: Any) -> Any:
        rows = self.rows.get(at.step, ())
        for row in _after(rows, batches.size(batch)) if self.beside else rows:
            batch = with_row(batch, row, self.draw(1))
        return batch


def _after(rows: Sequence[int], size: int) -> list[int]:
    """As many other rows of a batch, those that follow the first one."""
    others = [k % size for k in range(rows[0], rows[0] + size) if k % size not in rows] if rows else []
    return others[: len(rows)]


class WithoutSamples(Intervention):
    """Some samples of the dataset left out of every batch; the first that stays takes their place."""

    def __init__(self, ids: Sequence[int], words: str = "the named samples left out") -> None:
        self.ids, self.words = frozenset(ids), words

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        left_out = list(self.ids)
        made = []
        for batch in ids:
            stay = batch[~np.isin(batch, left_out)]
            made.append(np.concatenate([stay, stay[: len(batch) - len(stay)]]) if len(stay) else batch)
        return made


class PutRow(Intervention):
    """One sample put into a batch, in place of its first one."""

    def __init__(self, sample: Any, where: Where, words: str) -> None:
        self.sample, self.words = sample, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        return with_row(batch, 0, batches.clone(self.sample)) if acts(self.where, at) else batch


class LeaveOut(Intervention):
    """A share of the samples of every batch left out: those of the highest loss at that moment, or as many at random.

    A batch keeps its size: what is left out is replaced by the first of the samples that stay.
    """

    def __init__(self, share: float, loss_fn: LossFn | None, seed: int = 0) -> None:
        self.share, self.loss_fn, self.seed = share, loss_fn, seed
        chosen = "of the highest loss" if loss_fn is not None else "at random"
        self.words = f"{share:.0%} of the samples left out, {chosen}"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.rng = model, np.random.default_rng(self.seed)

    def batch(self, at: StepContext, batch: Any) -> Any:
        n = batches.size(batch)
        out = max(1, round(self.share * n))
        if out >= n:
            return batch
        order = self.rng.permutation(n) if self.loss_fn is None else self._by_loss(batch)
        stay = sorted(int(i) for i in order[out:])
        return batches.take(batch, [*stay, *stay[:out]][:n], n)

    def _by_loss(self, batch: Any) -> np.ndarray:
        assert self.loss_fn is not None
        losses = per_sample(self.model, self.loss_fn, batch, 1)
        return np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")


def with_row(batch: Any, row: int, sample: Any) -> Any:
    """The batch with another sample (a batch of one) in one of its rows."""
    n = batches.size(batch)
    both = batches.concat([batch, sample])
    return batches.take(both, [n if k == row else k for k in range(n)], n + 1)


def _offset(where: Where) -> str:
    if not isinstance(where, int):
        return f"the {where}'s step"
    return "the event's step" if where == 0 else f"{abs(where)} steps {'before' if where < 0 else 'after'} it"
