"""How the loss of a few samples goes from one time that they are trained on to the next, read from batch losses.

A batch's loss is the mean of its samples', so that n times its difference to the batches around it is what its own
samples have too much. Of a sample that is right but rare this falls as the network learns it; of a wrong one it does
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whyspike.types import Run

LEAST = 6  # times that the samples are drawn: a third of them on either side makes a median
AROUND = 16  # steps on either side that say what an ordinary batch has
LEARNT = 0.2  # of the first excess is left in the last third (judge.REMOVED, seen from the other side)


@dataclass(frozen=True, kw_only=True)
class Exposures:
    """Of the batches that hold one of some samples."""

    n: int
    first: float  # median excess over the first third of them, in units of the loss times samples
    last: float  # over the last third

    @property
    def left(self) -> float:
        """The share of the first excess that is left in the end."""
        return max(0.0, self.last) / self.first if self.first > 0 else float("nan")

    @property
    def learnt(self) -> bool:
        """Whether the samples came to have about the loss of the others."""
        return self.n >= LEAST and self.first > 0 and self.left <= LEARNT


def rows_of(run: Run, ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Of every step whose batch holds one of the samples, their rows in it. Empty where ids are not known."""
    if run.sample_ids is None or not len(ids):
        return {}
    wanted = frozenset(ids)
    return {
        step: tuple(k for k, i in enumerate(held) if i in wanted)
        for step, batch in zip(run.step.tolist(), run.sample_ids, strict=False)
        if not wanted.isdisjoint(held := np.asarray(batch).tolist())
    }


def exposures(run: Run, ids: Sequence[int]) -> Exposures | None:
    """None where the ids of the batches are not known, or no batch holds the samples."""
    if run.sample_ids is None or not len(ids):
        return None
    held = np.isin(run.step, list(rows_of(run, ids)))
    rows = np.flatnonzero(held & np.isfinite(run.loss))
    found = []
    for row in rows:
        around = np.arange(max(0, row - AROUND), min(len(run), row + AROUND + 1))
        around = around[~held[around] & np.isfinite(run.loss[around])]
        if len(around) >= AROUND // 2:
            found.append(len(run.sample_ids[row]) * float(run.loss[row] - np.median(run.loss[around])))
    if not found:
        return None
    k = max(1, len(found) // 3)
    return Exposures(n=len(found), first=float(np.median(found[:k])), last=float(np.median(found[-k:])))
