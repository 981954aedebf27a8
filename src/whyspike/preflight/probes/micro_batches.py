"""The samples of one step as micro-batches and as one batch."""

from __future__ import annotations

from itertools import islice
from typing import Any

from whyspike import batches
from whyspike.frozen import frozen, loss_value
from whyspike.loader_ids import data_loader
from whyspike.preflight.looked import Looked, generators_kept, items, own_copy
from whyspike.preflight.probe import Probe


def _split(looked: Looked) -> tuple[float, float] | None:
    """The mean of a step's micro-losses, and the loss of all their samples at once; None where they cannot be had."""
    training = looked.training
    k, inner, model = training.accumulate, data_loader(training.loader), training.model
    if k < 2:
        return None
    try:
        with generators_kept(inner):
            if inner is not None and inner.batch_sampler is not None:
                groups = [items(inner.dataset, rows) for rows in islice(own_copy(inner), k)]
                micro = [inner.collate_fn(group) for group in groups]
                whole = inner.collate_fn([item for group in groups for item in group])
            else:
                micro = list(islice(training.loader, k))
                whole = batches.concat(micro)
        with frozen(model, train_mode=looked.train_mode, seed=0):
            losses = [loss_value(model, training.loss_fn, b) for b in micro]
            return (sum(losses) / len(losses), loss_value(model, training.loss_fn, whole)) if len(losses) > 1 else None
    except Exception:  # the loader and the loss are looked at elsewhere, and what fails is said there
        return None


class MicroBatches(Probe):
    """The samples of one step as micro-batches and as one batch."""

    words = "holding the micro-batches of a step against the whole of it"

    def measure(self, looked: Looked) -> dict[str, Any]:
        return {"split": _split(looked)}
