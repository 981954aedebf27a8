"""Read the samples of recorded batches again, in this process, and compare: is a batch what its samples are?

Where the data set is deterministic, a batch that differs from its own samples was changed on its way by the process that
made it. Where it draws at random (augmentation), every batch differs and this says nothing.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike import batches
from whyspike.errors import WhySpikeError

if TYPE_CHECKING:
    from whyspike.replay import Subject

RUNS = 6  # capsules that are looked at, spread over the run
STEPS = 8  # consecutive steps of each: a few rounds of the usual two to four workers
SECONDS = 2.0  # of reading altogether: a slow data set is read less


def reread(subject: Subject) -> dict[int, float]:
    """The share of samples, by step, that come out bitwise as they were recorded; empty where none can be read."""
    paths = subject.run.capsules
    chosen = [paths[int(k)] for k in np.linspace(0, len(paths) - 1, min(RUNS, len(paths)))] if paths else []
    shares: dict[int, float] = {}
    began = perf_counter()
    for path in chosen:
        for record in [s for s in subject.capsule(path).steps if s.batches and s.ids is not None][:STEPS]:
            if perf_counter() - began > SECONDS or record.batches is None or len(record.batches) != 1:
                return shares
            try:
                again = subject.samples(record.ids)
                same = same_rows(record.batches[0], again, record.n_samples)
            except WhySpikeError:
                continue
            except Exception:  # the user's own data set may raise anything
                return shares
            if same is not None:
                shares[record.step] = float(same.mean())
    return shares


def same_rows(a: Any, b: Any, n: int) -> np.ndarray | None:
    """Whether each of n samples is bitwise the same in two batches, bool [n]; None when they are not alike in form."""
    ours, theirs = _columns(a, n), _columns(b, n)
    if not ours or len(ours) != len(theirs):
        return None
    same = np.ones(n, dtype=bool)
    for x, y in zip(ours, theirs, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            return np.zeros(n, dtype=bool)
        equal = (x == y) | ((x != x) & (y != y))
        same &= equal.reshape(n, -1).all(axis=1)
    return same


def _columns(batch: Any, n: int) -> list[np.ndarray]:
    found: list[np.ndarray] = []

    def tensor(t: Any) -> None:
        array(t.detach().cpu().to(_plain(t)).numpy())

    def array(x: np.ndarray) -> None:
        if x.ndim and len(x) == n:
            found.append(x)

    batches.walk(batch, tensor, array)
    return found


def _plain(t: Any) -> Any:
    """A dtype that numpy knows: bfloat16 has none."""
    import torch

    return torch.float32 if t.dtype == torch.bfloat16 else t.dtype
