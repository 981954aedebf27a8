"""The changes that an experiment makes, one seam each. Every class says in `words` what it does.

`where` chooses the steps: "event" (the steps the experiment aims at), "control" (the ordinary full-size step before
them, which placebos use), "always", or so many steps from the event's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.seams import Intervention, StepContext

Where = Literal["event", "control", "partial", "always"] | int
Draw = Callable[[int], Any]  # draw(n) returns a batch of n other training samples


def acts(where: Where, at: StepContext) -> bool:
    """Whether an intervention acts on this step."""
    if where == "event":
        return at.is_event
    if where == "control":
        return at.is_control
    if where == "partial":
        return at.n_samples < at.batch_size
    if where == "always":
        return True
    return at.event_step is not None and at.step == at.event_step + where


class RescaleLoss(Intervention):
    """Multiply the loss by `factor(at)`."""

    def __init__(self, factor: Callable[[StepContext], float], words: str, where: Where = "event") -> None:
        self.factor, self.words = factor, words
        self.where: Where = where

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.factor(at) if acts(self.where, at) else loss


class SkipBatch(Intervention):
    """Leave the batch out: no forward, no update."""

    def __init__(self, words: str = "that batch skipped", where: Where = "event") -> None:
        self.words = words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any | None:
        return None if acts(self.where, at) else batch


class FillBatch(Intervention):
    """Put the same samples into a full batch, topped up with other training samples."""

    def __init__(
        self,
        draw: Draw,
        words: str = "the same samples in a full batch",
        where: Where = "event",
        size: int | None = None,
    ) -> None:
        self.draw, self.words, self.size = draw, words, size
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        missing = (self.size or at.batch_size) - batches.size(batch)
        if not acts(self.where, at) or missing <= 0:
            return batch
        return batches.concat([batch, self.draw(missing)])


class ReplaceSamples(Intervention):
    """As many other training samples in place of the batch's own."""

    def __init__(self, draw: Draw, words: str = "other samples in the batch", where: Where = "event") -> None:
        self.draw, self.words = draw, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        return self.draw(batches.size(batch)) if acts(self.where, at) else batch


class ClipGradNorm(Intervention):
    """Clip the global L2 norm of the gradients, or of each tensor on its own with `per_tensor`."""

    def __init__(
        self, max_norm: float, words: str | None = None, where: Where = "event", *, per_tensor: bool = False
    ) -> None:
        self.max_norm, self.per_tensor = max_norm, per_tensor
        self.where: Where = where
        self.words = words or f"gradient clipped to norm {max_norm:.3g}{' per tensor' if per_tensor else ''}"

    def gradients(self, at: StepContext, model: nn.Module) -> None:
        if not acts(self.where, at):
            return
        parameters = [p for p in model.parameters() if p.grad is not None]
        for group in [[p] for p in parameters] if self.per_tensor else [parameters]:
            nn.utils.clip_grad_norm_(group, self.max_norm)


def momentum_buffers(optimizer: Optimizer) -> list[tuple[torch.Tensor, torch.Tensor, float, float]]:
    """Of every parameter that has a first moment: parameter, buffer, its decay, and the weight of a new gradient.

    torch SGD adds a gradient with weight 1 - dampening, Adam with 1 - beta1.
    """
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if isinstance(state.get("momentum_buffer"), torch.Tensor):
                found.append((p, state["momentum_buffer"], group["momentum"], 1 - group.get("dampening", 0)))
            elif isinstance(state.get("exp_avg"), torch.Tensor):
                beta1 = float(group["betas"][0]) if "betas" in group else 0.9
                found.append((p, state["exp_avg"], beta1, 1 - beta1))
    return found


class ZeroMomentum(Intervention):
    """Set the first moment of the optimizer to zero right after the step."""

    def __init__(self, words: str = "momentum set to zero right after it", where: Where = "event") -> None:
        self.words = words
        self.where: Where = where

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if acts(self.where, at):
            for _, buffer, _, _ in momentum_buffers(optimizer):
                buffer.zero_()


class SubtractMomentum(Intervention):
    """Take the step's own gradient out of the first moment right after the step; the rest of the memory stays."""

    def __init__(self, words: str = "its gradient taken out of the momentum", where: Where = "event") -> None:
        self.words = words
        self.where: Where = where
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.kept = []

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if acts(self.where, at):
            self.kept = [(b, b * decay) for _, b, decay, _ in momentum_buffers(optimizer)]

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if acts(self.where, at):
            for buffer, without in self.kept:
                buffer.copy_(without)


class ScaleLr(Intervention):
    """Multiply the learning rate. At a tenth it removes any spike, so it is a ceiling and proves nothing."""

    def __init__(self, factor: float, words: str | None = None, where: Where = "event") -> None:
        self.factor = factor
        self.where: Where = where
        self.words = words or f"learning rate x {factor:g}"

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if acts(self.where, at):
            self._kept = [g["lr"] for g in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if acts(self.where, at):
            for group, lr in zip(optimizer.param_groups, self._kept, strict=True):
                group["lr"] = lr
