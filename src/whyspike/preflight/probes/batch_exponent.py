"""How the loss depends on the number of samples in a batch."""

from __future__ import annotations

from typing import Any

from whyspike import exponent
from whyspike.cause import Setup
from whyspike.errors import WhySpikeError
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.types import Note


class BatchExponent(Probe):
    """How the loss depends on the number of samples in a batch."""

    words = "measuring the exponent of the loss in the batch size"

    def measure(self, looked: Looked) -> dict[str, Any]:
        model, loss_fn, first = looked.training.model, looked.training.loss_fn, looked.first
        mode = looked.train_mode
        try:
            if first.items is not None and first.collate is not None:
                rows = range(len(first.items))
                found = exponent.measure_from_dataset(model, loss_fn, first.items, first.collate, rows, train_mode=mode)
            else:
                found = exponent.measure(model, loss_fn, first.batch, train_mode=mode)
        except WhySpikeError as error:
            return {"exponent": None, "exponent_reason": str(error)}
        return {"exponent": found, "exponent_reason": None}

    def say(self, setup: Setup) -> Note | None:
        if setup.exponent is not None:
            return None
        return Note(
            id="exponent-unknown",
            text=f"whether the loss depends on the batch size could not be measured: {setup.exponent_reason}",
        )
