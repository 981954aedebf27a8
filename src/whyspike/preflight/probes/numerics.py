"""What the loss does with probabilities, and what it is of a network that is certain and wrong."""

from __future__ import annotations

from typing import Any

from whyspike.numerics import look
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe


class Numerics(Probe):
    """What the loss does with probabilities, and what it is of a network that is certain and wrong."""

    words = "making the network certain and wrong"

    def measure(self, looked: Looked) -> dict[str, Any]:
        training = looked.training
        try:
            return {"numerics": look(training.model, training.loss_fn, looked.first.batch)}
        except Exception:  # a loss in train mode only, or samples that cannot be taken apart
            return {"numerics": None}
