"""The training again, from scratch, with an intervention at the seams of every step.

The second backend of the experiment: slower than a replay, and needed where a replay cannot tell: whether a cure is a
better setting, and whatever depends on the order of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from whyspike import batches, probeset
from whyspike.errors import BadTraining
from whyspike.frozen import call_loss, frozen
from whyspike.loader_order import reordered
from whyspike.measure import probe_every
from whyspike.seams import BASELINE, Intervention, StepContext, StepRule, training_step
from whyspike.training import Training, build
from whyspike.types import Series

Source = Training | Callable[..., Training]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training from scratch gave."""

    seed: int
    words: str
    loss: np.ndarray  # float64 [T], as logged; nan where a step was skipped
    n_samples: np.ndarray  # int64 [T], as drawn
    batch_size: int
    state: Series  # the loss on more fixed samples, measured often; empty where the loader has no dataset to index
    final_probe: float  # mean loss on the probe set after training, tiled to the nominal batch size

    def last_batch_factor(self) -> float:
        """Median over epochs of a smaller batch's logged loss over the median of the 64 full-size ones before it."""
        found = []
        for row in np.flatnonzero(self.n_samples < self.batch_size):
            before = self.loss[max(0, row - 64) : row][self.n_samples[max(0, row - 64) : row] == self.batch_size]
            if len(before) >= 8 and np.isfinite(self.loss[row]):
                found.append(self.loss[row] / np.nanmedian(before))
        return float(np.median(found)) if found else math.nan


def steps_of(training: Training, intervention: Intervention = BASELINE, seed: int = 0) -> Any:
    """Yield (epoch, index, micro-batches) for every optimizer step. A short accumulation window ends an epoch.

    Raises:
        NotReplayable: the intervention changes the order of a loader whose order cannot be changed.
    """
    with reordered(training.loader, intervention, seed):
        for epoch in range(training.epochs):
            window: list[Any] = []
            index = 0
            for batch in training.loader:
                window.append(batch)
                if len(window) == training.accumulate:
                    yield epoch, index, window
                    window, index = [], index + 1
            if window:
                yield epoch, index, window


def train(
    source: Source,
    intervention: Intervention = BASELINE,
    *,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> Trained:
    """Train from scratch with an intervention.

    Raises:
        BadTraining: the factory does not build a training.
        NotReplayable: the intervention changes the order of a loader whose order cannot be changed.
    """
    training = build(source, seed)
    model, optimizer = training.model, training.optimizer
    rule = StepRule(accumulate=training.accumulate, clip_grad_norm=training.clip_grad_norm)
    nominal = getattr(training.loader, "batch_size", None)
    probe: list[Any] = []
    watched = probeset.of(training.loader, model) or []
    dense = sum(map(batches.size, watched)) >= probeset.DENSE
    every = probe_every(model)
    states: dict[int, float] = {}
    losses: list[float] = []
    sizes: list[int] = []
    intervention.begin(model, optimizer)
    for step, (epoch, index, window) in enumerate(steps_of(training, intervention, seed)):
        n = sum(batches.size(b) for b in window)
        nominal = nominal * training.accumulate if step == 0 and nominal else nominal or n
        if len(probe) < 8 and n == nominal:
            probe.append(batches.clone(window[0]))
        at = StepContext(step=step, epoch=epoch, index=index, n_samples=n, batch_size=int(nominal))
        result = training_step(model, optimizer, training.loss_fn, window, at, intervention, rule)
        if training.scheduler is not None:
            training.scheduler.step()
        losses.append(math.nan if result.loss is None else result.loss)
        sizes.append(n)
        if dense and step % every == 0:
            with frozen(model):
                states[step] = float(np.mean([float(training.loss_fn(model, b)) for b in watched]))
        if on_step:
            on_step()
    with frozen(model), torch.no_grad():
        final = float(np.mean([float(training.loss_fn(model, b)) for b in probe])) if probe else math.nan
    return Trained(
        seed=seed,
        words=intervention.words,
        loss=np.array(losses),
        n_samples=np.array(sizes),
        batch_size=int(nominal or 0),
        state=Series(np.array(list(states), dtype=np.int64), np.array(list(states.values()))),
        final_probe=final,
    )


def train_recorded(training: Training, recorder: Any, progress: Callable[[str, float], None] | None = None) -> None:
    """Train as a user's own loop would, with a recorder at its seams.

    Raises:
        BadTraining: loss_fn raised or did not return a scalar, or the loader is empty.
    """
    model, optimizer = training.model, training.optimizer
    waiting: list[torch.Tensor] = []

    def update() -> None:
        if training.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad_norm)
        optimizer.step()
        if training.scheduler is not None:
            training.scheduler.step()
        recorder.step(torch.stack(waiting).mean() if len(waiting) > 1 else waiting[0])
        waiting.clear()

    def evaluate() -> None:
        if training.evaluate is not None:
            with recorder.evaluating():
                recorder.log(**training.evaluate(model))

    every = training.evaluate_every
    steps = 0
    for epoch in range(training.epochs):
        if progress:
            progress(f"training, epoch {epoch + 1} of {training.epochs}", epoch / training.epochs)
        begun = evaluated = steps
        for batch in recorder.batches(training.loader):
            if not waiting:
                optimizer.zero_grad(set_to_none=True)
            loss = call_loss(model, training.loss_fn, batch)
            (loss / training.accumulate if training.accumulate > 1 else loss).backward()
            waiting.append(loss.detach())
            if len(waiting) == training.accumulate:
                update()
                steps += 1
                if every is not None and (steps - begun) % every == 0:
                    evaluate()
                    evaluated = steps
        if waiting:
            update()
            steps += 1
        if not steps:
            raise BadTraining("the loader yields no batch; a training needs at least one")
        if evaluated != steps or every is None:
            evaluate()
