"""The seams of a training step, and the one loop that passes through them.

order → batch → network → loss → gradients → update, and the boundary between steps. An `Intervention` changes
what passes at a seam; a plain `Intervention()` changes nothing, so that the baseline runs the very same code.
The loop serves the replay from a capsule and the training from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from whyspike.boundary import Boundary

LossFn = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where the loop stands: what an intervention may look at to decide whether it acts.

    `step` counts optimizer updates from the start of the training, `index` from the start of the epoch.
    `n_samples` is the size of the step as drawn, before any intervention; `batch_size` the nominal one.
    `is_event` is set on the steps that the experiment aims at, `is_control` on the ordinary step that its
    placebo uses instead.
    """

    step: int
    epoch: int
    index: int
    n_samples: int
    batch_size: int
    is_event: bool = False
    is_control: bool = False
    since_event: int | None = None  # steps since the latest event step, 0 on it; None before the first
    event_step: int | None = None  # the step that a replay aims at; None from scratch, where there may be many


@dataclass(frozen=True, kw_only=True)
class EpochContext:
    """What an intervention may look at to decide in which order an epoch draws its samples."""

    epoch: int
    batch_size: int  # samples of an ordinary batch
    previous: Sequence[np.ndarray]  # the dataset indices of each epoch before, int64 [N], in the order they were drawn
    rng: np.random.Generator  # the same for all arms of a pair


class Intervention:
    """A change at one seam. The base class is the baseline: it changes nothing.

    Subclasses override the seam they change and say in `words` what a reader would call the change. An
    intervention may hold state between calls; `begin` is called before every replay or training.
    """

    words: str = "as it was"
    must_act: bool = False  # as a placebo it is refused where it leaves a replay what it was, bit by bit
    epochs: int = 1  # where whole epochs are replayed: how many with this change; the last of them is measured

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Forget everything: a new replay begins."""

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Change which samples an epoch draws, and in which order: one array of dataset indices for each batch."""
        return ids

    def boundary(self, at: StepContext, boundary: Boundary) -> Boundary:
        """Change what happens before the step: leave a part of it out with `boundary.without(…)`."""
        return boundary

    def batch(self, at: StepContext, batch: Any) -> Any | None:
        """Change the mini-batch. Returning None skips the step: no forward, no update."""
        return batch

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        """Change the scalar loss, before backward."""
        return loss

    def gradients(self, at: StepContext, model: nn.Module) -> None:
        """Change `p.grad` in place, after the user's own clipping."""

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        """Change the optimizer, its hyperparameters or its state, before `optimizer.step()`."""

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        """Change the optimizer or its state, or undo what `before_update` did."""


BASELINE = Intervention()


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """What the user's own loop does in a step beside loss, backward and update."""

    accumulate: int = 1  # micro-steps per update; the loss of each is divided by it before backward
    logs: Literal["mean", "sum"] = "mean"  # of the micro-losses: their mean, or their sum over `accumulate`
    clip_grad_norm: float | None = None
    scaler: Any = None  # a torch.amp.GradScaler


@dataclass(frozen=True)
class StepResult:
    """What a step gave. `loss` is the mean over the micro-steps, as a user would log it; None when skipped."""

    loss: float | None
    n_samples: int = field(default=0)


def training_step(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFn,
    micro_batches: Iterable[Any],
    at: StepContext,
    intervention: Intervention = BASELINE,
    rule: StepRule | None = None,
) -> StepResult:
    """Train one step, with every seam open to the intervention.

    Args:
        micro_batches: the batches of this step; more than one under gradient accumulation. Each is asked for right
            before its forward pass.
        rule: the user's own habits (accumulation, clipping, loss scaling).

    Returns:
        The loss as logged. It is None when the intervention skipped the step.
    """
    rule = rule or StepRule()
    logged: list[torch.Tensor] = []
    for drawn in micro_batches:
        batch = intervention.batch(at, drawn)
        if batch is None:
            continue
        if not logged:
            optimizer.zero_grad(set_to_none=True)
        loss = intervention.loss(at, loss_fn(model, batch))
        logged.append(loss.detach())
        share = loss / rule.accumulate if rule.accumulate > 1 else loss
        (rule.scaler.scale(share) if rule.scaler is not None else share).backward()
    if not logged:
        return StepResult(None)
    if rule.scaler is not None:
        rule.scaler.unscale_(optimizer)
    if rule.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), rule.clip_grad_norm)
    intervention.gradients(at, model)
    intervention.before_update(at, optimizer)
    if rule.scaler is not None:
        rule.scaler.step(optimizer)
        rule.scaler.update()
    else:
        optimizer.step()
    intervention.after_update(at, optimizer)
    if rule.logs == "sum":
        return StepResult(float(torch.stack(logged).sum()) / rule.accumulate)
    return StepResult(float(torch.stack(logged).mean()) if len(logged) > 1 else float(logged[0]))
