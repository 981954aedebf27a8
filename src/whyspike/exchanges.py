"""Batches that change places around the begin of an epoch: the same batches and run, with one look less or more.

The last batches of an epoch are the ones that the network has seen one time less than the first batches of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.seams import Intervention, StepContext
from whyspike.types import Run

REACH = 4  # batches on either side: as many as a capsule of an epoch's end holds before it


class _Exchange(Intervention):
    """Give some steps the batches of other steps of the same window, as the record holds them."""

    def __init__(self, run: Run, words: str) -> None:
        self.run, self.words = run, words
        self._held: dict[int, Sequence[Any]] | None = None
        self._partner: Mapping[int, int] = {}
        self._begun = 0
        self._at, self._micro = -1, 0

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        if self._held is None:
            self._held = _held(self.run)
        self._begun += 1
        self._partner = self.pairs(self._held, np.random.default_rng(self._begun))
        self._at = -1

    def pairs(self, held: Mapping[int, Sequence[Any]], rng: np.random.Generator) -> Mapping[int, int]:
        """Which step takes whose batches."""
        raise NotImplementedError

    def batch(self, at: StepContext, batch: Any) -> Any:
        self._micro = self._micro + 1 if at.step == self._at else 0
        self._at = at.step
        other = self._partner.get(at.step)
        if other is None or self._held is None or self._micro >= len(self._held[other]):
            return batch
        return batches.clone(self._held[other][self._micro])


class ExchangeAcrossBoundary(_Exchange):
    """The first batches of an epoch change places with the last ones of the epoch before."""

    def pairs(self, held: Mapping[int, Sequence[Any]], rng: np.random.Generator) -> Mapping[int, int]:
        made: dict[int, int] = {}
        for start in _starts(self.run):
            for k in range(REACH):
                if start - REACH + k in held and start + k in held:
                    made[start + k], made[start - REACH + k] = start - REACH + k, start + k
        return made


class ExchangeWithLater(_Exchange):
    """The first batches of an epoch change places with later ones of the same epoch, others in every replay."""

    def pairs(self, held: Mapping[int, Sequence[Any]], rng: np.random.Generator) -> Mapping[int, int]:
        made: dict[int, int] = {}
        for start in _starts(self.run):
            later = [s for s in held if start + REACH <= s < start + 8 * REACH]
            drawn = rng.permutation(later)[:REACH].tolist()
            for k, other in enumerate(drawn):
                made[start + k], made[other] = other, start + k
        return {step: other for step, other in made.items() if step in held}


def _starts(run: Run) -> list[int]:
    """The first steps of all epochs but the first."""
    if run.epoch is None:
        return []
    return run.step[np.flatnonzero(np.diff(run.epoch) != 0) + 1].tolist()


def _held(run: Run) -> dict[int, Sequence[Any]]:
    """The batches that capsules hold of the steps around the begin of an epoch."""
    from whyspike import capsule, capsule_file

    starts = np.array(_starts(run))
    found: dict[int, Sequence[Any]] = {}
    for path in run.capsules:
        steps = [s.step for s in capsule_file.peek(path).steps]
        if steps and len(starts) and np.any((starts > steps[0]) & (starts <= steps[-1])):
            found |= {s.step: s.batches for s in capsule.load(path).steps if s.batches}
    return found
