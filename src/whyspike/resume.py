"""Does a training go on where it was, once it has been saved and loaded? One step tells, bitwise.

On copies: a few steps are trained, the state dicts are saved and loaded into another copy, and both take the same next
step from the same generators. Where they differ, the state dicts do not hold everything that the step depends on.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch

from whyspike import batches
from whyspike.errors import BadTraining
from whyspike.frozen import call_loss, frozen, restore_rng, rng_state
from whyspike.training import Training

STEPS = 3  # before the state is saved: a momentum is there after one, a moving average after two


@dataclass(frozen=True)
class Resumed:
    """What one step after saving and loading gave, beside the step that would have come."""

    loss: tuple[float, float]  # of that step: gone on, resumed
    differs: tuple[str, ...]  # names of the tensors that are not bitwise the same after it; empty when all are

    @property
    def same(self) -> bool:
        """Whether the step is bitwise the same."""
        return not self.differs and self.loss[0] == self.loss[1]


def resumes(training: Training, steps: int = STEPS) -> Resumed:
    """Save, load, take one step, and compare it with the one that would have come. Nothing of the training changes.

    Args:
        steps: optimizer updates before the state is saved.

    Raises:
        BadTraining: the loader yields no batch, loss_fn cannot be used, or model and optimizer cannot be copied.
    """
    held = []
    with frozen(training.model, train_mode=None):
        for batch in training.loader:
            held.append(batches.clone(batch))
            if len(held) > steps:
                break
    if not held:
        raise BadTraining("the loader yields no batch; a training needs at least one")
    first, second = _copied(training), _copied(training)
    before = rng_state()
    try:
        for k in range(steps):
            _step(first, held[k % len(held)])
        saved = _saved(first)
        generators = rng_state()
        gone_on = _step(first, held[-1])
        for name, part in second.items():
            if name in saved:
                part.load_state_dict(saved[name])
        restore_rng(generators)
        resumed = _step(second, held[-1])
    finally:
        restore_rng(before)
    return Resumed((gone_on, resumed), _differences(_saved(first), _saved(second)))


def _copied(training: Training) -> dict[str, Any]:
    """Model, optimizer and scheduler, copied together so that they belong together; and the loss."""
    parts = {"model": training.model, "optimizer": training.optimizer, "scheduler": training.scheduler}
    try:
        made = copy.deepcopy({k: v for k, v in parts.items() if v is not None})
    except Exception as error:
        raise BadTraining(
            f"model and optimizer cannot be copied ({type(error).__name__}: {error}); saving and loading is tried on "
            "copies only"
        ) from error
    return {**made, "loss_fn": _Plain(training.loss_fn)}


class _Plain:
    """A loss function among things that have a state."""

    def __init__(self, loss_fn: Any) -> None:
        self.loss_fn = loss_fn


def _step(parts: Mapping[str, Any], batch: Any) -> float:
    model, optimizer = parts["model"], parts["optimizer"]
    optimizer.zero_grad(set_to_none=True)
    loss = call_loss(model, parts["loss_fn"].loss_fn, batches.clone(batch))
    loss.backward()
    optimizer.step()
    if "scheduler" in parts:
        with warnings.catch_warnings():  # a copy does not know that its optimizer's step() was wrapped
            warnings.simplefilter("ignore")
            parts["scheduler"].step()
    return float(loss.detach())


def _saved(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save({k: p.state_dict() for k, p in parts.items() if hasattr(p, "state_dict")}, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _differences(a: Any, b: Any, name: str = "") -> tuple[str, ...]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        return () if same else (name,)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = [f"{name}.{k}".lstrip(".") for k in {*a} ^ {*b}]
        for k in a:
            if k in b:
                found += _differences(a[k], b[k], f"{name}.{k}".lstrip("."))
        return tuple(sorted(found))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return tuple(d for k, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, f"{name}.{k}"))
    both_nan = isinstance(a, float) and isinstance(b, float) and isnan(a) and isnan(b)
    return () if a is b or a == b or both_nan else (name,)
