"""Norms of gradients, updates and weights, as few kernels as possible and without waiting for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class Norms:
    """The parameters that an optimizer trains, and what to measure of them.

    Results are tensors on the device of the parameters; the caller reads them later, when a GPU has caught up.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._known = {id(p): name for name, p in model.named_parameters()}
        self.names: list[str] = []
        self.parameters: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []
        self.refresh()

    def refresh(self) -> bool:
        """Look the parameters up again. Returns whether they are others than before (add_param_group)."""
        found = [p for group in self._optimizer.param_groups for p in group["params"]]
        if len(found) == len(self.parameters) and all(a is b for a, b in zip(found, self.parameters, strict=True)):
            return False
        self.parameters = found
        self.names = [self._known.get(id(p), f"parameter.{i}") for i, p in enumerate(found)]
        self._before = []
        return True

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The global L2 norm and that of every tensor (nan where there is no gradient); None without any gradient."""
        grads = [p.grad for p in self.parameters]
        present = [_dense(g) for g in grads if g is not None]
        if not present:
            return None
        norms = _norms(present)
        if len(present) == len(grads):
            each = torch.stack(norms)
        else:
            nan = torch.full_like(norms[0], float("nan"))
            rest = iter(norms)
            each = torch.stack([nan if g is None else next(rest) for g in grads])
        scale = getattr(self._optimizer, "grad_scale", None)  # fused optimizers unscale inside step()
        if scale is not None:
            each = each / scale
            norms = list(each[~each.isnan()])
        return torch.linalg.vector_norm(torch.stack(norms) if len(present) != len(grads) else each), each

    def before_update(self) -> torch.Tensor:
        """Remember the weights; returns their global norm."""
        local = [_dense(p.detach()) for p in self.parameters]
        if len(self._before) != len(local):
            self._before = [torch.empty_like(p) for p in local]
        torch._foreach_copy_(self._before, local)
        return torch.linalg.vector_norm(torch.stack(_norms(local)))

    def after_update(self) -> torch.Tensor:
        """The global norm of what the update changed."""
        torch._foreach_sub_(self._before, [_dense(p.detach()) for p in self.parameters])
        return torch.linalg.vector_norm(torch.stack(_norms(self._before)))


def _dense(t: Any) -> torch.Tensor:
    if t.is_sparse:
        return t.coalesce()._values()
    # A norm of a whole DTensor is collective: on one rank alone it would hang. The local shard is what this rank sees.
    return t.to_local() if hasattr(t, "to_local") else t


def _norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    first = tensors[0]
    if any(t.dtype in _LOW_PRECISION for t in tensors):
        tensors = [t.float() for t in tensors]
    norms = list(torch._foreach_norm(tensors, 2))
    if any(t.device != first.device or t.dtype != norms[0].dtype for t in norms):
        norms = [n.to(first.device, torch.float32) for n in norms]
    return norms
