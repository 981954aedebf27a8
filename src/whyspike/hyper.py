"""The hyperparameters of an optimizer's parameter groups, as plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

Hyper = tuple[dict[str, Any], ...]


def hyperparameters(optimizer: Optimizer) -> Hyper:
    """What every group holds beside its parameters: lr, momentum, betas, weight_decay, ..."""
    return tuple({k: plain(v) for k, v in g.items() if k != "params" and is_plain(v)} for g in optimizer.param_groups)


class Hyperparameters:
    """Those of one training, read again and again. Where nothing but the lr has changed that is quick."""

    def __init__(self) -> None:
        self.now: Hyper | None = None
        self._values: list[dict[str, Any]] = []  # of every group but for its lr, where none can be changed in place

    def read(self, optimizer: Optimizer) -> bool:
        """Read them into `now`. Returns whether anything but the lr has changed."""
        groups, before = optimizer.param_groups, self.now
        if before is not None and len(groups) == len(self._values) and all(map(_same_values, groups, self._values)):
            self.now = tuple({**known, "lr": plain(g["lr"])} for known, g in zip(before, groups, strict=True))
            return False
        self.now = hyperparameters(optimizer)
        self._values = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in groups]
        if not all(_stays(v) for values in self._values for v in values.values()):
            self._values = []
        return without_lr(before) != without_lr(self.now)


def _same_values(group: dict[str, Any], values: dict[str, Any]) -> bool:
    return len(group) == len(values) + 2 and all(group.get(k, _same_values) is v for k, v in values.items())


def _stays(value: Any) -> bool:
    """Whether it has the same value as long as it is the same object, or is none that is read."""
    if isinstance(value, tuple):
        return all(map(_stays, value))
    return not isinstance(value, torch.Tensor | list)


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
