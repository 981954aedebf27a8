"""Read samples again and compare: is a batch what its samples are, and is what is drawn at random drawn anew?

Where the data set is deterministic, a batch that differs from its own samples was changed on its way by the process
that made it. Where it draws at random (augmentation), two readings differ; two readings of a whole epoch that are
bitwise the same show that its generators begin each epoch alike.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
SAMPLES = 8  # that each worker reads twice in each of two epochs
CHANCE = 1e-6  # that so many random samples come out alike; not a matter of statistics


@dataclass(frozen=True, kw_only=True)
class SameDraws:
    """What a loader that draws at random gives for the same samples, in another epoch and in the same one."""

    same: float  # share of samples that two epochs give bitwise alike
    random: float  # share of samples that come out otherwise when they are read twice in one epoch
    alike: float | None  # share of samples that two workers give alike at the same place; None for one worker
    n: int  # samples compared between the epochs; 0 where generators were compared
    generator: str | None = None  # whose states were compared instead: "python", "numpy" or "torch"

    @property
    def proven(self) -> bool:
        """Whether the epochs are the same, although one epoch is random in itself."""
        if self.generator is not None:
            return self.same == 1.0
        return self.same == 1.0 and (1 - self.random) ** self.n < CHANCE


def reread(subject: Subject) -> dict[int, float]:
    """The share of samples, by step, that come out bitwise as they were recorded; empty where none can be read."""
    paths = subject.run.capsules
    chosen = [paths[int(k)] for k in np.linspace(0, len(paths) - 1, min(RUNS, len(paths)))] if paths else []
    shares: dict[int, float] = {}
    began = perf_counter()
    for path in chosen:
        for record in subject.capsule(path).steps[:STEPS]:
            spent = perf_counter() - began > SECONDS and len(shares) >= 2 * STEPS
            if spent or not record.batches or len(record.batches) != 1 or record.ids is None:
                return shares
            try:
                again = subject.samples(record.ids.tolist())
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
        equal = (x == y) | (_is_nan(x) & _is_nan(y))
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


def _is_nan(x: np.ndarray) -> Any:
    return np.isnan(x) if x.dtype.kind == "f" else False


def _plain(t: Any) -> Any:
    """A dtype that numpy knows: bfloat16 has none."""
    import torch

    return torch.float32 if t.dtype == torch.bfloat16 else t.dtype


# --------------------------------------------------------------------------- epochs that repeat each other


def same_draws(subject: Subject) -> SameDraws | None:
    """Whether what the loader draws at random is the same in every epoch. None where nothing is, or it cannot be had.

    A loader with workers is asked for a few samples in two epochs of a copy of it; the workers are started for that.
    One without is judged by the generators that the record holds.
    """
    workers = subject.run.facts.get("num_workers")
    return _of_workers(subject) if isinstance(workers, int) and workers > 0 else _of_generators(subject)


def _of_workers(subject: Subject) -> SameDraws | None:
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    from whyspike.frozen import frozen
    from whyspike.loader_ids import data_loader

    inner = data_loader(subject.loader)
    if inner is None or isinstance(inner.dataset, IterableDataset) or subject.dataset is None:
        return None
    n, total = inner.num_workers, len(subject.dataset)
    ids = [int(i) for i in np.random.default_rng(0).permutation(total)[:SAMPLES]]
    try:
        with frozen(subject.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loader has said already what it has to say
            # The generator is a fresh one, whose state is another one in the second epoch, as a loader's always is.
            copy: DataLoader[Any] = DataLoader(
                inner.dataset,
                batch_sampler=[ids] * (2 * n),
                num_workers=n,
                collate_fn=inner.collate_fn,
                worker_init_fn=inner.worker_init_fn,
                multiprocessing_context=inner.multiprocessing_context,
                persistent_workers=inner.persistent_workers,
                generator=torch.Generator().manual_seed(1),
            )
            first, second = list(copy), list(copy)
        size = len(ids)
        pairs = _shares(zip(first, second, strict=True), size)
        within = _shares(((first[k], first[k + n]) for k in range(n)), size)
        beside = _shares(((first[k], first[k + 1]) for k in range(n - 1)), size)
    except Exception:  # the user's own data set, or what starts its workers, may raise anything
        return None
    if pairs is None or within is None or within == 1.0:
        return None
    return SameDraws(same=pairs, random=1 - within, alike=beside, n=2 * n * size)


def _shares(pairs: Iterable[tuple[Any, Any]], size: int) -> float | None:
    """The share of samples that are the same in pairs of batches; None without a pair that can be compared."""
    found = [same_rows(a, b, size) for a, b in pairs]
    same = [f.mean() for f in found if f is not None]
    return float(np.mean(same)) if same else None


def _of_generators(subject: Subject) -> SameDraws | None:
    """Compare the generators at the same place of different epochs, where drawing a batch moves them."""
    states: dict[str, dict[int, dict[int, str]]] = defaultdict(
        lambda: defaultdict(dict)
    )  # name → index → epoch → digest
    for path in subject.run.capsules:
        for record in subject.capsule(path).steps:
            for name in ("python", "numpy", "torch"):
                if record.rng is not None and name in record.rng:
                    states[name][record.index][record.epoch] = _digest(record.rng[name])
    for name, by_index in states.items():
        moved = sum(
            by_index[k][e] != by_index[k - 1][e]
            for k in by_index
            if k - 1 in by_index
            for e in by_index[k]
            if e in by_index[k - 1]
        )
        compared = [d for by_epoch in by_index.values() if len(by_epoch) > 1 for d in [list(by_epoch.values())]]
        if moved and len(compared) > 1 and all(len(set(d)) == 1 for d in compared):
            return SameDraws(same=1.0, random=1.0, alike=None, n=0, generator=name)
    return None


def _digest(state: Any) -> str:
    """A name for a generator's state, equal for equal states."""
    made = hashlib.blake2b(digest_size=16)

    def take(x: Any) -> None:
        if isinstance(x, Mapping):
            for key in sorted(x, key=str):
                made.update(str(key).encode())
                take(x[key])
        elif isinstance(x, list | tuple):
            for value in x:
                take(value)
        elif isinstance(x, np.ndarray) or batches.is_tensor(x):
            made.update(np.asarray(x).tobytes())
        else:
            made.update(repr(x).encode())

    take(state)
    return made.hexdigest()
