"""Which samples a run drew, and in which order: what the recorded sample ids say by themselves. numpy alone.

A *pass* is one iteration over the loader, from its begin to its end or to where the loop left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from whyspike.types import Run

SHUFFLED = 1 / 3  # mean |emission - source| / N of a random permutation: E|U - V| of two uniform numbers
BUFFERED = 0.1  # below it samples leave not far from where they lie in the file: a buffer (causes.md A5)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over the loader."""

    number: int  # as in `run.epoch`
    first_row: int  # of the run
    ids: np.ndarray  # int64 [N], in the order in which they were drawn
    sizes: np.ndarray  # int64 [S], samples of each step
    whole: bool  # it went to the loader's end

    @property
    def rows(self) -> range:
        """The rows of the run that belong to it."""
        return range(self.first_row, self.first_row + len(self.sizes))

    def batches(self) -> list[np.ndarray]:
        """The ids of each step."""
        return np.split(self.ids, np.cumsum(self.sizes)[:-1])


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A step whose batch holds some samples more than once."""

    row: int  # of the run
    index: int  # of the step in its pass
    copies: np.ndarray  # int64 [K], positions in the batch of all but the first of each sample
    n_samples: int


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A pass that was left before its end, and the pass after it."""

    cut: int  # number of the pass that was left
    row: int  # of the run: the first step of the next pass
    n_before: int  # samples drawn before the cut
    again: np.ndarray  # int64 [K], samples of the next pass that had been drawn before the cut, in order of their draw
    n_after: int  # samples of the next pass
    same_order: bool  # the next pass begins with the very sequence that the cut one began with
    left_out: int | None  # samples of the data set that neither pass drew; None when its size is not known

    @property
    def resumed_rightly(self) -> bool:
        """Whether the next pass draws what the cut one had left, and nothing else."""
        return not len(self.again)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The passes of a run, and what they show."""

    passes: tuple[Pass, ...]
    dataset_size: int | None  # as the loader says it

    @property
    def whole(self) -> tuple[Pass, ...]:
        """The passes that went to their end."""
        return tuple(p for p in self.passes if p.whole)

    @cached_property
    def equal_orders(self) -> tuple[int, int]:
        """How many whole passes drew the very sequence of the whole pass before them, and how many could have."""
        pairs = list(pairwise(self.whole))
        return sum(np.array_equal(a.ids, b.ids) for a, b in pairs), len(pairs)

    @cached_property
    def displacement(self) -> float | None:
        """Mean |emission - source| / N over the whole passes: 1/3 for a full shuffle, 0 for the file's own order.

        The source of a sample is the rank of its id among the ids of the pass. None without a whole pass.
        """
        found = [np.abs(emitted - source).mean() for emitted, source in self._places()]
        return float(np.mean(found)) if found else None

    @cached_property
    def rank_correlation(self) -> float | None:
        """Mean over the whole passes of the correlation of emission index and rank of the id; None without any."""
        found = [
            np.corrcoef(emitted, source)[0, 1]
            for emitted, source in self._places()
            if len(emitted) > 1 and np.ptp(source)
        ]
        return float(np.mean(found)) if found else None

    @cached_property
    def buffer(self) -> int | None:
        """Samples of the buffer that the ids would have been shuffled in: how early one of them came, at most.

        A sample leaves a buffer of b no more than b - 1 places before its own in the file, and over a whole pass one
        of them comes close to that. For a full shuffle it is about the whole epoch. None without a whole pass.
        """
        earliest = [
            int((np.unique(p.ids, return_inverse=True)[1] - np.arange(len(p.ids))).max())
            for p in self.whole
            if len(p.ids)
        ]
        return max(earliest) + 1 if earliest else None

    def _places(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for one in self.whole:
            if len(one.ids):
                distinct, rank = np.unique(one.ids, return_inverse=True)
                yield np.arange(len(one.ids)) / len(one.ids), rank / len(distinct)

    @cached_property
    def repeats(self) -> tuple[Repeat, ...]:
        """The steps that hold a sample more than once, in their order."""
        found = []
        for one in self.passes:
            for index, ids in enumerate(one.batches()):
                _, first = np.unique(ids, return_index=True)
                if len(first) < len(ids):
                    copies = np.setdiff1d(np.arange(len(ids)), first)
                    found.append(Repeat(row=one.first_row + index, index=index, copies=copies, n_samples=len(ids)))
        return tuple(found)

    @cached_property
    def drawn_twice(self) -> float:
        """The share of draws, over all passes, whose sample had been drawn in the same pass before.

        0 without replacement; 1/e = .37 for N draws with replacement from N samples.
        """
        total = sum(len(p.ids) for p in self.passes)
        return 1 - sum(len(np.unique(p.ids)) for p in self.passes) / total if total else 0.0

    @cached_property
    def restarts(self) -> tuple[Restart, ...]:
        """The passes that were left before their end, each with the one that follows."""
        return tuple(self._restart(cut, after) for cut, after in pairwise(self.passes) if not cut.whole)

    def _restart(self, cut: Pass, after: Pass) -> Restart:
        shared = min(len(cut.ids), len(after.ids))
        union = len(np.union1d(cut.ids, after.ids))
        return Restart(
            cut=cut.number,
            row=after.first_row,
            n_before=len(cut.ids),
            again=after.ids[np.isin(after.ids, cut.ids)],
            n_after=len(after.ids),
            same_order=shared > 0 and bool(np.array_equal(cut.ids[:shared], after.ids[:shared])),
            left_out=None if self.dataset_size is None or not after.whole else self.dataset_size - union,
        )

    @cached_property
    def never(self) -> np.ndarray | None:
        """The ids below `dataset_size` that no step drew; None when the size is not known."""
        if self.dataset_size is None:
            return None
        drawn = np.zeros(self.dataset_size, dtype=bool)
        for one in self.passes:
            drawn[one.ids[one.ids < self.dataset_size]] = True
        return np.flatnonzero(~drawn)


def sampling(run: Run) -> Sampling | None:
    """Read the passes of a run. None when the samples or the epochs are not known."""
    if run.sample_ids is None or run.epoch is None or not len(run):
        return None
    starts = [0, *(np.flatnonzero(np.diff(run.epoch)) + 1).tolist()]
    ends = [*starts[1:], len(run)]
    finished = {m.data.get("epoch") for m in run.marked("epoch")}
    cut = {m.data.get("epoch") for m in run.marked("epoch-cut")}
    passes = []
    for first, end in zip(starts, ends, strict=True):
        number = int(run.epoch[first])
        passes.append(
            Pass(
                number=number,
                first_row=first,
                ids=_joined(run.sample_ids[first:end]),
                sizes=np.array([len(ids) for ids in run.sample_ids[first:end]], dtype=np.int64),
                # The last pass may still be going on; a record without marks has only whole ones before it.
                whole=number not in cut and (number in finished or end < len(run)),
            )
        )
    size = run.facts.get("dataset_size")
    return Sampling(passes=tuple(passes), dataset_size=size if isinstance(size, int) else None)


def ids_at(run: Run, step: int) -> np.ndarray | None:
    """The samples of one step, in the order of its batch; None when they are not known."""
    row = int(np.searchsorted(run.step, step))
    if run.sample_ids is None or row >= len(run) or run.step[row] != step:
        return None
    return run.sample_ids[row]


def _joined(ids: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(i, dtype=np.int64) for i in ids]) if len(ids) else np.empty(0, np.int64)
