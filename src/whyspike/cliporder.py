"""Whether the user's clipping comes when it can act: before the update, and on gradients that are no longer scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from whyspike.strides import counts

MARKS = 64  # of each kind; later ones are thinned


class ClipOrder:
    """Follows the clippings of one training.

    Args:
        mark: notes something in the record.
    """

    def __init__(self, mark: Callable[[int, str, dict[str, object]], None]) -> None:
        self._mark = mark
        self.updated = -1  # the last step whose update was seen to begin
        self._late = False
        self._seen = {"clip-late": 0, "clip-scaled": 0}
        self._looked = 0

    def clipped(self, step: int, limit: float, norm: float, hooked: bool, scale: float) -> float | None:
        """A clipping to `limit` of gradients of this `norm`.

        Args:
            hooked: whether the update of this step is seen; where it is not, what was seen last still holds.
            scale: of the loss, where the gradients still have it; 1 where they do not.

        Returns:
            What the update's own gradients are clipped to; None where the clipping comes after the update.
        """
        if hooked:
            self._late = self.updated == step
        self._looked += 1
        if self._late:
            self._say("clip-late", step, {"limit": limit, "norm": norm})
            return None
        if scale > 1.0:
            self._say("clip-scaled", step, {"limit": limit, "norm": norm, "scale": scale})
        return limit / scale

    def _say(self, name: str, step: int, data: dict[str, object]) -> None:
        self._seen[name] += 1
        if counts(self._seen[name] - 1, MARKS):
            self._mark(step, name, {**data, "looked": self._looked, "seen": self._seen[name]})


def unscaled_by(scaler: Any, optimizer: Optimizer) -> float:
    """The scale that the gradients still have: 1 without a GradScaler, or after its `unscale_`."""
    try:
        if scaler is None or not scaler.is_enabled():
            return 1.0
        state = scaler._per_optimizer_states.get(id(optimizer))  # torch 2.4 to 2.13; there is no public way to ask
        if state is not None and state["stage"].name != "READY":
            return 1.0
        return float(scaler.get_scale())
    except (AttributeError, KeyError, TypeError):
        return 1.0
