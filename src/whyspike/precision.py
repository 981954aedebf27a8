"""A step in full precision: what autocast or a cast by hand makes small is left in float32.

Functions are called with autocast off and with float32 in place of half-precision arguments, so that neither a region
under `torch.autocast` nor a `.half()` narrows anything. The graph stays whole: gradients are float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from whyspike.seams import Intervention, StepContext

NARROW = (torch.float16, torch.bfloat16)
LARGEST = {torch.float16: 65504.0, torch.bfloat16: 3.39e38}  # torch.finfo(...).max
_CASTS = ("half", "bfloat16")


class FullPrecision(TorchFunctionMode):
    """Inside, everything is computed in float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        given = {k: _wide(v) for k, v in (kwargs or {}).items()}
        wide = [_wide(a) for a in args]
        device = next((a.device.type for a in wide if isinstance(a, torch.Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            if name in _CASTS and wide and isinstance(wide[0], torch.Tensor):
                return wide[0]
            return func(*wide, **given)


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_wide(v) for v in value)
    return value


class InFullPrecision(Intervention):
    """The forward pass and its gradients in float32."""

    words = "the step in float32"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._mode: FullPrecision | None = None

    def batch(self, at: StepContext, batch: Any) -> Any:
        if self._mode is None:
            self._mode = FullPrecision()
            self._mode.__enter__()
        return batch

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        return loss
