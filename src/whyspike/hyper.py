"""The hyperparameters of an optimizer's parameter groups, as plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

Hyper = tuple[dict[str, Any], ...]


def hyperparameters(optimizer: Optimizer) -> Hyper:
    """What every group holds beside its parameters: lr, momentum, betas, weight_decay, ..."""
    return tuple({k: plain(v) for k, v in g.items() if k != "params" and is_plain(v)} for g in optimizer.param_groups)


def without_lr(groups: Hyper | None) -> list[dict[str, Any]] | None:
    """The groups but for their lr, to see whether anything else has changed."""
    return None if groups is None else [{k: v for k, v in g.items() if k != "lr"} for g in groups]


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, None, or a pair of such (betas)."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    if isinstance(value, tuple | list):
        return all(not isinstance(v, tuple | list) and is_plain(v) for v in value)
    return isinstance(value, int | float | bool | str | type(None))


def plain(value: Any) -> Any:
    """The value, without tensors."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return type(value)(plain(v) for v in value) if isinstance(value, tuple | list) else value
