"""The factor by which a GradScaler multiplies the loss: when it grew, and which updates it skipped.

It grows after so many good steps (2,000) and falls when a gradient is not finite; that update is left out. The factor
is copied after every step and read some steps later, so that nobody waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST = 1000  # changes that are noted


class ScaleWatch:
    """Notes every change of the factor as a mark `loss-scale`, at the step after which it changed."""

    def __init__(self, scaler: Any, mark: Callable[[int, str, dict[str, object]], None]) -> None:
        self._scaler, self._mark = scaler, mark
        self._pending: list[tuple[int, torch.Tensor]] = []
        self._last: float | None = None
        self._marks = 0

    def after_step(self, step: int) -> None:
        scale = getattr(self._scaler, "_scale", None)  # get_scale() would wait for the GPU; None before the first use
        if isinstance(scale, torch.Tensor):
            self._pending.append((step, scale.detach().clone()))

    def read(self) -> None:
        """Write the changes down. This is where a GPU is waited for."""
        if not self._pending:
            return
        values = torch.stack([s for _, s in self._pending]).flatten().tolist()
        for (step, _), value in zip(self._pending, values, strict=True):
            if value != self._last and self._marks < MOST:
                self._mark(step, "loss-scale", {"before": self._before(), "scale": value, "interval": self._interval()})
                self._marks += 1
            self._last = value
        self._pending.clear()

    def _before(self) -> float | None:
        """The factor of the step; of the first one, what the scaler began with."""
        if self._last is not None:
            return self._last
        found = getattr(self._scaler, "_init_scale", None)
        return float(found) if isinstance(found, int | float) else None

    def _interval(self) -> int | None:
        found = getattr(self._scaler, "get_growth_interval", None)
        interval: Any = found() if callable(found) else None
        return None if interval is None else int(interval)
