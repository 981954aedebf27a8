"""The changes that an experiment makes, one seam each. Every class says in `words` what it does.

`where` chooses the steps: "event" (the steps the experiment aims at), "onward" (these and all that follow), "control"
(the ordinary full-size step before them, which placebos use), "always", or so many steps from the event's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.batchnorm import layers
from whyspike.boundary import Boundary, Part
from whyspike.lossform import LossForms
from whyspike.seams import EpochContext, Intervention, StepContext

Where = Literal["event", "onward", "control", "partial", "always"] | int
Draw = Callable[[int], Any]  # draw(n) returns a batch of n other training samples
Copies = Callable[[int], Sequence[int]]  # copies(step) returns the rows of its batch that repeat another row's sample


def acts(where: Where, at: StepContext) -> bool:
    """Whether an intervention acts on this step."""
    if where == "event":
        return at.is_event
    if where == "onward":
        return at.since_event is not None
    if where == "control":
        return at.is_control
    if where == "partial":
        return at.n_samples < at.batch_size
    if where == "always":
        return True
    return at.event_step is not None and at.step == at.event_step + where


class LeaveOut(Intervention):
    """Leave out parts of what happens between two steps: they stay as they were before it."""

    def __init__(self, parts: Sequence[Part], words: str, where: Where = "always") -> None:
        self.parts, self.words = tuple(parts), words
        self.where: Where = where

    def boundary(self, at: StepContext, boundary: Boundary) -> Boundary:
        return boundary.without(*self.parts) if acts(self.where, at) else boundary


class RescaleLoss(Intervention):
    """Multiply the loss by `factor(at)`."""

    def __init__(self, factor: Callable[[StepContext], float], words: str, where: Where = "event") -> None:
        self.factor, self.words = factor, words
        self.where: Where = where

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.factor(at) if acts(self.where, at) else loss


class WeightMicroLosses(Intervention):
    """Weight the micro-losses of a step by what their micro-batches hold: their mean is then the mean over all of it.

    Args:
        counts: by step, of each micro-batch in the order in which they are drawn.
    """

    def __init__(self, counts: Mapping[int, Sequence[float]], words: str, where: Where = "event") -> None:
        self.counts, self.words = counts, words
        self.where: Where = where
        self._seen = (-1, 0)

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._seen = (-1, 0)

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        if not acts(self.where, at):
            return loss
        step, k = self._seen
        k = k + 1 if step == at.step else 0
        self._seen = (at.step, k)
        n = self.counts.get(at.step, ())
        return loss * (len(n) * n[k] / sum(n)) if k < len(n) and sum(n) > 0 else loss


class SkipBatch(Intervention):
    """Leave the batch out: no forward, no update."""

    def __init__(self, words: str = "that batch skipped", where: Where = "event") -> None:
        self.words = words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any | None:
        return None if acts(self.where, at) else batch


class RunningStatistics(Intervention):
    """BatchNorm layers normalise the batch by their running statistics, and do not learn from it."""

    def __init__(
        self, words: str = "BatchNorm on its running statistics in that batch", where: Where = "event"
    ) -> None:
        self.words = words
        self.where: Where = where
        self._changed: list[Any] = []
        self._model: nn.Module | None = None

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._changed = model, []

    def batch(self, at: StepContext, batch: Any) -> Any:
        if acts(self.where, at) and self._model is not None:
            self._changed = [m for m in layers(self._model) if m.training]
            for module in self._changed:
                module.training = False
        return batch

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        for module in self._changed:
            module.training = True
        self._changed = []
        return loss


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


class ResizeBatch(Intervention):
    """Batches of another size from a step on: topped up with other training samples, or cut to their first ones.

    Args:
        sizes: by the step of the event, the samples of its batch and of all that follow.
    """

    def __init__(self, draw: Draw, sizes: Mapping[int, int], words: str) -> None:
        self.draw, self.sizes, self.words = draw, sizes, words

    def batch(self, at: StepContext, batch: Any) -> Any:
        size = self.sizes.get(at.event_step) if at.event_step is not None and at.since_event is not None else None
        n = batches.size(batch)
        if size is None or size == n:
            return batch
        return batches.take(batch, list(range(size)), n) if size < n else batches.concat([batch, self.draw(size - n)])


class ReplaceSamples(Intervention):
    """As many other training samples in place of the batch's own."""

    def __init__(self, draw: Draw, words: str = "other samples in the batch", where: Where = "event") -> None:
        self.draw, self.words = draw, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        return self.draw(batches.size(batch)) if acts(self.where, at) else batch


class ReplaceCopies(Intervention):
    """Other training samples in place of the repeated ones of a batch; each sample stays once.

    Args:
        copies: `copies(step)` gives the rows to replace; none where nothing is repeated.
    """

    def __init__(
        self, draw: Draw, copies: Copies, words: str = "other samples in place of the copies", where: Where = "event"
    ) -> None:
        self.draw, self.copies, self.words = draw, copies, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        copies = self.copies(at.step) if acts(self.where, at) else ()
        if not len(copies):
            return batch
        n = batches.size(batch)
        both = batches.concat([batch, self.draw(len(copies))])
        rows = list(range(n))
        for k, row in enumerate(copies):
            rows[int(row)] = n + k
        return batches.take(both, rows, n + len(copies))


class DropCopies(Intervention):
    """The batch without the repeated samples: each once, so that it is smaller."""

    def __init__(self, copies: Copies, words: str = "the copies left out", where: Where = "event") -> None:
        self.copies, self.words = copies, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        copies = self.copies(at.step) if acts(self.where, at) else ()
        if not len(copies):
            return batch
        gone, n = {int(c) for c in copies}, batches.size(batch)
        return batches.take(batch, [r for r in range(n) if r not in gone], n)


class CopyOthers(Intervention):
    """Other training samples, repeated exactly as the batch's own are.

    Args:
        pattern: `pattern(step)` says of every row which distinct sample it holds, from 0; None where it is not known.
    """

    must_act = True

    def __init__(
        self,
        draw: Draw,
        pattern: Callable[[int], Sequence[int] | None],
        words: str = "other samples, repeated as often",
        where: Where = "event",
    ) -> None:
        self.draw, self.pattern, self.words = draw, pattern, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        pattern = self.pattern(at.step) if acts(self.where, at) else None
        if pattern is None:
            return batch
        n = max(int(k) for k in pattern) + 1
        return batches.take(self.draw(n), [int(k) for k in pattern], n)


class LeaveCopiesOut(Intervention):
    """The batches that hold a sample more than once left out of every epoch."""

    words = "the batches that were filled up with copies left out"

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [b for b in ids if len(np.unique(b)) == len(b)]


class ReadSamples(Intervention):
    """The samples of given ids in the batch's place, read by this process and not by the loader's workers.

    Args:
        draw: what the experiment hands to `Cause.interventions`; `draw.of(ids)` reads samples by their ids.
        ids: `ids(step)` gives the samples of a step; None leaves its batch as it is.
    """

    def __init__(
        self,
        draw: Any,
        ids: Callable[[int], Sequence[int] | np.ndarray | None],
        words: str = "its own samples read again by the main process",
        where: Where = "event",
    ) -> None:
        self.draw, self.ids, self.words = draw, ids, words
        self.where: Where = where

    def batch(self, at: StepContext, batch: Any) -> Any:
        ids = self.ids(at.step) if acts(self.where, at) else None
        read = None if ids is None else self.draw.of(ids)
        return batch if read is None else read


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


class StableForms(Intervention):
    """The loss's logarithms of probabilities computed from the logits, as a loss on logits does it."""

    words = "the loss computed from the logits"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._mode: LossForms | None = None

    def batch(self, at: StepContext, batch: Any) -> Any:
        if self._mode is None:
            self._mode = LossForms(stable=True)
            self._mode.__enter__()
        return batch

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        return loss


class ShrinkHead(Intervention):
    """The last layer's weights and bias made smaller before the first step of a training from scratch."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.words = f"the last layer begins {1 / factor:.3g} times smaller"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if heads:
            with torch.no_grad():
                for p in heads[-1].parameters():
                    p.mul_(self.factor)


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
