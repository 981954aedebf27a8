"""The first loss as it is and in float32, where the loss narrows anything; then that of the largest samples."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch

from whyspike import batches
from whyspike.errors import WhySpikeError
from whyspike.frozen import frozen, loss_value
from whyspike.loader_ids import data_loader
from whyspike.precision import FullPrecision
from whyspike.preflight.looked import Looked, generators_kept, indexable, items
from whyspike.preflight.probe import Probe

SECONDS = 1.0  # in which the data set is read; of a slow one a part
CHUNK = 256  # samples that are read at once


class Precision(Probe):
    """The first loss as it is and in float32, where the loss narrows anything; then that of the largest samples."""

    words = "computing the first loss in float32"

    def measure(self, looked: Looked) -> dict[str, Any]:
        try:
            low, full = _losses(looked, looked.drawn)
            if low == full:
                return {}
            extreme = _largest(looked)
            if extreme is not None:
                worst = _losses(looked, [extreme])
                if not np.isfinite(worst[0]):
                    low, full = worst
        except WhySpikeError:
            return {}
        return {"precision": (low, full)}


def _losses(looked: Looked, drawn: Sequence[Any]) -> tuple[float, float]:
    """The mean loss of batches as it is, and with everything in float32."""
    model, loss_fn = looked.training.model, looked.training.loss_fn
    with frozen(model, train_mode=looked.train_mode, seed=0):
        low = sum(loss_value(model, loss_fn, b) for b in drawn)
    with frozen(model, train_mode=looked.train_mode, seed=0), FullPrecision():
        full = sum(loss_value(model, loss_fn, b) for b in drawn)
    return low / len(drawn), full / len(drawn)


def _largest(looked: Looked) -> Any | None:
    """A batch of the samples with the largest numbers in them, of as many as can be read in a second."""
    inner, first = data_loader(looked.training.loader), looked.first
    if inner is None or not indexable(inner) or first.collate is None or first.items is None:
        return None
    n, size = len(inner.dataset), len(first.items)  # type: ignore[arg-type]
    rows = np.random.default_rng(0).permutation(n)
    sizes: list[float] = []
    began = perf_counter()
    try:
        with generators_kept(inner):
            for k in range(0, n, CHUNK):
                if perf_counter() - began > SECONDS:
                    break
                sizes += [_size(item) for item in items(inner.dataset, [int(i) for i in rows[k : k + CHUNK]])]
            chosen = [int(rows[k]) for k in np.argsort(sizes)[::-1][:size]]
            return first.collate(items(inner.dataset, chosen))
    except Exception:  # a data set may raise anything
        return None


def _size(item: Any) -> float:
    found = [0.0]

    def tensor(t: Any) -> None:
        if torch.is_floating_point(t) and t.numel():
            found.append(float(t.detach().abs().max()))

    def array(x: Any) -> None:
        if x.dtype.kind == "f" and x.size:
            found.append(float(np.abs(x).max()))

    batches.walk(item, tensor, array)
    return max(found)
