"""Which samples a batch holds: the index lists that a DataLoader's sampler hands out, noted on their way.

The sampler is wrapped only while the loader makes its iterator, so the loader is the user's own again before the
second batch. Nothing is drawn, nothing is reordered, no random number is used.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from itertools import filterfalse
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


class _Noting:
    """A sampler that appends what it hands out to a queue, and is otherwise the one it wraps."""

    def __init__(self, inner: Any, seen: deque[Any]) -> None:
        self._inner, self._seen = inner, seen

    def __iter__(self) -> Iterator[Any]:
        # Everything passes, because append returns None; no line of Python runs for a batch.
        return filterfalse(self._seen.append, self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def compact(indices: Any) -> Any:
    """Indices as a sampler hands them out, as an array where they fit: a sampler may reuse its list."""
    try:
        return array("I", indices)
    except (TypeError, OverflowError, ValueError):  # a single index, a tensor, beyond 32 bits, or no integers
        return list(indices) if isinstance(indices, list | tuple) else indices


class LoaderIds:
    """The sample ids of one pass over a loader, in the order of its batches.

    Usage: `ids = LoaderIds(loader)`; make the iterator and draw the first batch; `ids.release()`; then take one entry
    of `ids.seen` from the left for every batch: a list of indices, or a single index. It stays empty where the ids
    cannot be known: no torch DataLoader, an IterableDataset, or workers that may answer out of order.
    """

    def __init__(self, loader: Any) -> None:
        self.seen: deque[Any] = deque()  # the indices of the batches that were drawn, first drawn first
        self._loader: Any = None
        self._noting: _Noting | None = None
        self._name = ""
        inner = data_loader(loader)
        if inner is None or isinstance(inner.dataset, IterableDataset) or not getattr(inner, "in_order", True):
            return
        self._name = "batch_sampler" if inner.batch_sampler is not None else "sampler"
        self._original = getattr(inner, self._name)
        if self._original is None:
            return
        # Workers that stay between epochs keep the sampler that they began with.
        staying = getattr(getattr(inner, "_iterator", None), "_index_sampler", None)
        if staying is not None:
            if isinstance(staying, _Noting):
                self._noting = staying
                staying._seen = self.seen
            return
        self._loader = inner
        self._noting = _Noting(self._original, self.seen)
        # DataLoader.__setattr__ forbids this after __init__
        object.__setattr__(inner, self._name, self._noting)

    def release(self) -> None:
        """Give the loader its own sampler back. May be called more than once."""
        if self._loader is not None:
            object.__setattr__(self._loader, self._name, self._original)
            self._loader = None
            if len({id(i) for i in self.seen}) < len(self.seen):  # a list that is used again: its content is lost
                self.seen = deque()

    def close(self) -> None:
        """The pass is over: note nothing more, also where workers stay."""
        self.release()
        if self._noting is not None:
            self._noting._seen = deque(maxlen=0)


def data_loader(loader: Any) -> DataLoader[Any] | None:
    """The torch DataLoader behind what the user iterates over, or None. tqdm, Fabric and Accelerate wrap it."""
    for _ in range(4):
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate
        if isinstance(loader, DataLoader):
            return loader
        loader = getattr(loader, "iterable", None) or getattr(loader, "_dataloader", None)  # tqdm; Fabric
    return None


def loader_facts(loader: Any) -> dict[str, object]:
    """What a loader says about itself, for the header of a record."""
    inner = data_loader(loader)
    facts: dict[str, object] = {"loader": type(inner if inner is not None else loader).__name__}
    if inner is not None:
        sampler = getattr(inner, "sampler", None)
        batch_sampler = getattr(inner, "batch_sampler", None)
        batch_size = inner.batch_size if inner.batch_size is not None else getattr(batch_sampler, "batch_size", None)
        facts |= {
            "dataset": type(inner.dataset).__name__,
            "dataset_size": length(inner.dataset),
            "batch_size": batch_size if isinstance(batch_size, int) else None,
            "drop_last": bool(getattr(batch_sampler, "drop_last", inner.drop_last)),
            "shuffle": _shuffles(sampler, batch_sampler),
            "num_workers": inner.num_workers,
        }
    facts["batches_per_epoch"] = length(loader)
    return facts


def _shuffles(sampler: Any, batch_sampler: Any) -> bool | None:
    inner = getattr(batch_sampler, "sampler", sampler)
    return {"RandomSampler": True, "SequentialSampler": False}.get(type(inner).__name__)


def length(sized: Any) -> int | None:
    """len(), or None for what has no length."""
    try:
        return len(sized)
    except Exception:  # DataLoader over an IterableDataset: TypeError; a user's __len__ may raise anything
        return None
