"""What one evaluation changes: checksums before and after it."""

from __future__ import annotations

from typing import Any

import torch

from whyspike.checksum import checksums
from whyspike.frozen import frozen
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.training import Training


def _evaluation(training: Training) -> tuple[str, ...] | None:
    """What one call of `evaluate(model)` changes; None where there is none, or where it fails by itself."""
    if training.evaluate is None:
        return None
    model = training.model
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    with frozen(model, train_mode=None), torch.enable_grad():
        flags = [m.training for m in model.modules()]
        sums = checksums(parameters), checksums(list(model.buffers()))
        try:
            training.evaluate(model)
        except Exception:
            return None
        finally:
            after = checksums(parameters), checksums(list(model.buffers()))
            changed = [m.training for m in model.modules()] != flags
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    if not torch.equal(parameter, value):
                        parameter.copy_(value)
    found = [part for part, old, new in zip(("weights", "buffers"), sums, after, strict=True) if old != new]
    return (*found, *(["modes"] if changed else []))


class Evaluation(Probe):
    """What one evaluation changes: checksums before and after it."""

    words = "evaluating once"

    def measure(self, looked: Looked) -> dict[str, Any]:
        return {"evaluation": _evaluation(looked.training)}
