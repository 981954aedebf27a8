"""Copies of the latest batches, in memory that is set aside for them.

A batch that is held where the loader put it lies among the memory that a training takes and gives back in every step:
its activations are then in other places each time, and no longer in the caches, which costs more than a copy does.
`benchmarks/holding.py` measures both. A copy besides is what was drawn, whatever the training does to the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# docs/benchmarks/holding.md: of steps of 3 to 10 ms a copy costs less at every size. Smaller batches are those of
# shorter steps, for which that is not measured; 256 of 1 MB would stay allocated for 1.4 % of a step.
LEAST_BYTES = 1 << 14
MOST_BYTES = 1 << 18
BLOCK = 64  # slots that are made at a time


class BatchRing:
    """Copies batches of one form, each of which stays as it is for a number of steps.

    Args:
        like: a batch of this form; see `fits`.
        holds: tells for how many steps a copy is needed; never fewer than before.
    """

    def __init__(self, like: Any, holds: Callable[[], int]) -> None:
        self._holds, self._kind = holds, type(like)
        self._keys = list(like) if self._kind is dict else None
        self._form = _form(_parts(like))
        self._slots: list[list[torch.Tensor]] = []
        self._steps: list[int] = []  # whose batch is in each slot
        self._next = 0  # the slot that was written longest ago

    @staticmethod
    def fits(batch: Any) -> bool:
        """Whether it is a list, a tuple or a dict of dense tensors in main memory, and nothing else."""
        if type(batch) not in (list, tuple, dict) or not batch:
            return False
        return all(
            type(t) is torch.Tensor
            and t.is_cpu
            and t.layout is torch.strided
            and not (t.requires_grad or t.is_quantized)
            for t in _parts(batch)
        )

    def keep(self, batch: Any, step: int) -> Any:
        """A copy of this step's batch; None where it has another form than the first one had."""
        if type(batch) is not self._kind or (self._keys is not None and list(batch) != self._keys):
            return None
        parts = _parts(batch)
        try:
            if _form(parts) != self._form:
                return None
        except AttributeError:  # no tensor
            return None
        at = self._next if self._next < len(self._slots) else 0
        if not self._slots or self._steps[at] >= step - self._holds():
            self._more(at, parts)
        slot = self._slots[at]
        torch._foreach_copy_(slot, parts)
        self._steps[at], self._next = step, at + 1
        return slot if self._kind is list else tuple(slot) if self._keys is None else dict(zip(self._keys, slot))  # noqa: B905

    def _more(self, at: int, like: list[torch.Tensor]) -> None:
        """Make slots that are written before the one at this place, whose batch is still needed."""
        with torch.no_grad():
            memory = [torch.empty((BLOCK, *t.shape), dtype=t.dtype, device="cpu") for t in like]
            self._slots[at:at] = [[m[k] for m in memory] for k in range(BLOCK)]
        self._steps[at:at] = [-1 << 62] * BLOCK


def _parts(batch: Any) -> list[torch.Tensor]:
    return list(batch.values()) if type(batch) is dict else list(batch)


def _form(parts: list[torch.Tensor]) -> list[tuple[Any, ...]]:
    return [(type(t), t.shape, t.dtype, t.is_cpu, t.layout, t.requires_grad) for t in parts]
