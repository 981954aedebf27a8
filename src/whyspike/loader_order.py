"""In which order a loader draws its samples: the order seam on a DataLoader, and batches drawn again by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from whyspike.errors import NotReplayable
from whyspike.loader_ids import data_loader
from whyspike.seams import EpochContext, Intervention


def fetch(dataset: Any, collate: Callable[[Any], Any], ids: Iterable[Any]) -> Any:
    """The batch of these dataset indices, put together as a DataLoader does it."""
    several = getattr(dataset, "__getitems__", None)  # as torch's own fetcher looks for it
    rows = [int(i) for i in ids]
    return collate(several(rows) if several else [dataset[i] for i in rows])


def changes_order(intervention: Intervention) -> bool:
    """Whether an intervention acts at the order seam."""
    return type(intervention).order is not Intervention.order


class _Ordered:
    """A batch sampler whose epochs pass through the order seam, and which is otherwise the one it wraps."""

    def __init__(self, inner: Any, intervention: Intervention, seed: int, previous: list[np.ndarray]) -> None:
        self._inner, self._intervention, self._seed = inner, intervention, seed
        self._previous = previous

    def __iter__(self) -> Iterator[list[int]]:
        drawn = [np.asarray(batch) for batch in self._inner]
        if any(b.ndim != 1 or b.dtype.kind not in "iu" for b in drawn):
            raise NotReplayable(
                "the loader's batch_sampler hands out something else than lists of dataset indices; only those can be "
                "put into another order"
            )
        at = EpochContext(
            epoch=len(self._previous),
            batch_size=max((len(b) for b in drawn), default=0),
            previous=tuple(self._previous),
            rng=np.random.default_rng((self._seed, len(self._previous))),
        )
        changed = self._intervention.order(at, [b.astype(np.int64) for b in drawn])
        self._previous.append(np.concatenate([*changed, np.empty(0, dtype=np.int64)]).astype(np.int64))
        for batch in changed:
            yield [int(i) for i in batch]

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def reordered(loader: Any, intervention: Intervention, seed: int = 0) -> Iterator[None]:
    """Inside, every pass over the loader passes through the intervention's order seam. One pass is one epoch.

    Nothing is touched when the intervention leaves the order alone. The loader's own sampler draws as always, so that
    every generator stands where it would; only what it hands out is changed before the loader fetches it.

    Raises:
        NotReplayable: the loader has no batch sampler whose indices could be put into another order.
    """
    if not changes_order(intervention):
        yield
        return
    undo = reorder(loader, intervention, seed, [])
    try:
        yield
    finally:
        undo()


def reorder(loader: Any, intervention: Intervention, seed: int, previous: list[np.ndarray]) -> Callable[[], None]:
    """Let every pass over the loader go through the order seam, until the function that is returned is called.

    Args:
        previous: the dataset indices of the passes before, in their order; this and every later pass is appended.

    Raises:
        NotReplayable: as `reordered`.
    """
    inner = data_loader(loader)
    sampler = getattr(inner, "batch_sampler", None)
    if isinstance(sampler, _Ordered):
        return lambda: None
    if inner is None or sampler is None or isinstance(inner.dataset, IterableDataset):
        raise NotReplayable(
            f"the order of {type(loader).__name__} cannot be changed; it needs a torch DataLoader over a map-style "
            "dataset that puts its own batches together"
        )
    if getattr(inner, "_iterator", None) is not None:
        raise NotReplayable("the loader's workers stay between epochs and keep their order; build a fresh DataLoader")
    # DataLoader.__setattr__ forbids this after __init__
    object.__setattr__(inner, "batch_sampler", _Ordered(sampler, intervention, seed, previous))
    return lambda: object.__setattr__(inner, "batch_sampler", sampler)
