"""The probe set: fixed training samples whose loss says where the network is, whatever the batch was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from whyspike.frozen import frozen
from whyspike.loader_ids import data_loader, length
from whyspike.loader_order import fetch

SAMPLES = 256  # as the probe of experiment X5; its noise is common to all arms
LEAST = 32
DENSE = 96  # fewer samples say less of the network: healthy trainings stay below 1.25 at 128 (STATE_LINE is 1.5)
SEED = 20_24  # the same samples while recording and in every replay


def of(loader: Any, model: nn.Module) -> list[Any] | None:
    """The probe set of a loader to be measured every few steps; None where it has no dataset to index.

    Four batches, but not more than a replay's probe has: that costs one forward pass per step at a stride of four.

    Every generator of the process stays as it was.
    """
    inner = data_loader(loader)
    if inner is None or not hasattr(inner.dataset, "__getitem__"):
        return None
    n, size = length(inner.dataset), inner.batch_size
    if not n or not size:
        return None
    with frozen(model):
        return pieces(n, size, lambda rows: fetch(inner.dataset, inner.collate_fn, rows), most=max(LEAST, 4 * size))


def pieces(n: int, batch_size: int, take: Callable[[list[int]], Any], *, most: int = SAMPLES) -> list[Any]:
    """Choose the probe set among n samples, in batches of at most a size; `take(rows)` makes a batch."""
    total = min(SAMPLES, most, n)
    piece = max(1, min(batch_size, total))
    rows = np.random.default_rng(SEED).permutation(n)[: total // piece * piece].tolist()
    return [take(rows[k : k + piece]) for k in range(0, len(rows), piece)]
