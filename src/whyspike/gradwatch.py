"""Whether the gradient of an update still holds that of the update before: seen at a few steps, exactly.

At a step that is looked at, a hook on one parameter notes what lies in `.grad` before the first backward pass, and the
fresh gradient of every pass. Right before the update, `.grad` is a multiple of the fresh gradient where it was zeroed,
and of fresh plus old where it was not: clipping and unscaling change the multiple, not the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

LOOKS = 32  # steps that are looked at
LEAST = 8  # elements of the parameter: two unknowns, and enough left over to see that the fit is exact
EXACT = 1e-3  # of the fit, relative; float32 leaves 1e-6, a foreach sum in bfloat16 4e-3 of an element


class GradWatch:
    """Looks at some steps of one training.

    Args:
        mark: notes something in the record.
    """

    def __init__(self, optimizer: Optimizer, mark: Callable[[int, str, dict[str, object]], None]) -> None:
        self._mark = mark
        self._looked = self._left = 0
        self._hook: Any = None
        self._old: torch.Tensor | None = None
        self._fresh: torch.Tensor | None = None
        self._version = -1
        self.adopt(optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """The training goes on with another optimizer."""
        self.end()
        able = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad and p.numel() >= LEAST]
        # The smallest: the look costs two copies of it.
        self._parameter = min(able, key=lambda p: p.numel()) if able else None
        self._sparse = False

    @property
    def wanted(self) -> bool:
        """Whether there is more to look at."""
        return self._parameter is not None and not self._sparse and self._looked < LOOKS

    def begin(self) -> None:
        """A batch was drawn for a step that is looked at."""
        if self._parameter is not None and self._hook is None and self._parameter.requires_grad:
            self._old = self._fresh = None
            self._hook = self._parameter.register_hook(self._backward)

    def _backward(self, gradient: torch.Tensor) -> None:
        parameter = self._parameter
        if parameter is None or gradient.is_sparse or hasattr(gradient, "to_local"):
            self._sparse = True
            return
        if self._fresh is None:
            self._old = None if parameter.grad is None else parameter.grad.detach().clone()
            self._fresh = gradient.detach().clone()
        else:
            self._fresh = self._fresh + gradient.detach()

    def before_update(self, step: int) -> None:
        """The gradients are complete."""
        parameter, fresh, old = self._parameter, self._fresh, self._old
        self._fresh = self._old = None
        if parameter is None or fresh is None or parameter.grad is None:
            return
        updated, self._version = self._version not in (-1, parameter._version), parameter._version
        if not updated:
            return
        self._looked += 1
        share = 0.0 if old is None else _held(parameter.grad.detach(), fresh, old)
        if share > 0.0:
            self._left += 1
            data: dict[str, object] = {"looked": self._looked, "left": self._left, "share": round(share, 6)}
            self._mark(step, "gradients-left", data)

    def end(self) -> None:
        """The step has ended. Not to be called while hooks run."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _held(gradient: torch.Tensor, fresh: torch.Tensor, old: torch.Tensor) -> float:
    """The norm of `old` over that of `fresh` where `gradient` is a multiple of their sum, to rounding; else 0."""
    g, f, o = (t.flatten().double() for t in (gradient, fresh, old))
    size, left = float(f.norm()), float(o.norm())
    total = float((f + o).norm())
    if not (0.0 < size < float("inf") and 0.0 < left < float("inf") and total > 0.0 and float(g.norm()) > 0.0):
        return 0.0

    def misfit(of: torch.Tensor) -> float:
        scale = float(g @ of) / float(of @ of)
        return float((g - scale * of).norm()) / float(g.norm()) if scale > 0 else 1.0

    # Both fit where old and fresh point the same way: then nothing can be told.
    return left / size if misfit(f + o) < EXACT and misfit(f) > 10 * EXACT else 0.0
