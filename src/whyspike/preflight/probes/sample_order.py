"""The sample ids of two epochs: another order each, no sample twice, a bit of everything in each batch?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from whyspike import batches
from whyspike.loader_ids import data_loader
from whyspike.preflight.looked import Looked, copy_of_sampler, generators_kept, indexable, items
from whyspike.preflight.probe import Probe

MOST = 4000  # batches of each epoch
RARE = 0.2  # of the batches (as causes/padded_duplicates.py)
LABELLED = 8  # batches whose classes are looked at
DRAWS = 99  # random orders of the same samples: the smallest p is 1 / 100


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the sampler draws. `copies` are samples of a batch that are in it already, the most of any batch."""

    same: bool  # two epochs draw the same samples in the same order
    copies: int
    size: int  # of that batch
    purity: tuple[float, float] | None = (
        None  # share of the commonest class in a batch, and in a random one of its size
    )
    pure: bool = False  # purer than each of 99 random orders


def _purity(inner: Any, drawn: list[list[int]]) -> tuple[tuple[float, float] | None, bool]:
    """How much of one class the batches are, where a sample has an integer for a class."""
    chosen = [drawn[int(k)] for k in np.unique(np.linspace(0, len(drawn) - 1, LABELLED).astype(int))]
    rng = np.random.default_rng(0)
    everywhere = [i for rows in drawn for i in rows]
    others = [everywhere[int(k)] for k in rng.choice(len(everywhere), min(512, len(everywhere)), replace=False)]
    own = [_classes(inner, rows) for rows in chosen]
    pool = _classes(inner, others)
    if pool is None or any(c is None for c in own) or len(set(pool)) < 2:
        return None, False
    ours = float(np.mean([_share(c) for c in own if c is not None]))
    draws = [
        float(np.mean([_share(list(rng.choice(pool, len(rows), replace=len(rows) > len(pool)))) for rows in chosen]))
        for _ in range(DRAWS)
    ]
    return (ours, float(np.mean(draws))), ours > max(draws)


def _classes(inner: Any, rows: list[int]) -> list[int] | None:
    batch = inner.collate_fn(items(inner.dataset, rows))
    found: list[list[int]] = []

    def tensor(t: Any) -> None:
        if not t.is_floating_point() and t.dtype != torch.bool and t.ndim == 1 and len(t) == len(rows):
            found.append([int(v) for v in t])

    batches.walk(batch, tensor, lambda x: None)
    return found[0] if len(found) == 1 else None


def _share(classes: list[int]) -> float:
    return Counter(classes).most_common(1)[0][1] / len(classes)


class SampleOrder(Probe):
    """The sample ids of two epochs: another order each, no sample twice, a bit of everything in each batch?"""

    words = "drawing the samples of two epochs"

    def measure(self, looked: Looked) -> dict[str, Any]:
        inner = data_loader(looked.training.loader)
        if inner is None or not indexable(inner):
            return {}
        try:
            with generators_kept(inner):
                sampler = copy_of_sampler(inner)
                if sampler is inner.batch_sampler:
                    return {}
                first = [[int(i) for i in rows] for rows in islice(iter(sampler), MOST)]
                second = [[int(i) for i in rows] for rows in islice(iter(sampler), MOST)]
                if not first or not any(first):
                    return {}
                worst = max(first, key=lambda rows: len(rows) - len(set(rows)))
                same = first == second
                often = sum(len(set(rows)) < len(rows) for rows in first) > RARE * len(first)
                purity, pure = _purity(inner, first) if same else (None, False)
        except Exception:  # samplers that draw no integers, datasets that raise
            return {}
        copies = 0 if often else len(worst) - len(set(worst))  # with replacement they are everywhere, and meant so
        return {"order": Order(same=same, copies=copies, size=len(worst), purity=purity, pure=pure)}
