"""The seams of a script with an intervention at them, and a record of what came of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from whyspike import probeset
from whyspike.arm import numbers
from whyspike.frozen import frozen
from whyspike.hooks import Begin
from whyspike.loader_order import changes_order, reorder
from whyspike.scriptpasses import Drawn
from whyspike.scriptwatch import ScriptWatch, Watched
from whyspike.seams import Intervention, StepContext


class ArmWatch(ScriptWatch):
    """A script watch whose first training passes through an intervention.

    Args:
        events: steps at which the event of the experiment begins.
        stop: updates after which the script is ended; None for all of it.
    """

    def __init__(self, folder: Path, *, intervention: Intervention, events: Sequence[int], stop: int | None) -> None:
        super().__init__(lambda n: folder if not n else folder.with_name(f"record-{n + 1}"), name="arm", stop=stop)
        self.taping.probed = True  # an arm is measured by its losses
        self.intervention, self.events = intervention, sorted(events)
        self.losses: list[float] = []  # of every step, nan where it was skipped
        self.sizes: list[int] = []
        self._begun = False
        self._orders: list[np.ndarray] = []  # of the passes so far, where the intervention changes them
        self._at: StepContext | None = None
        self._parent = os.getppid()

    def at(self) -> StepContext:
        """Where the training stands."""
        recorder = self.watched[0].recorder
        step, (epoch, first, *_) = len(self.losses), recorder._context
        before = [e for e in self.events if e <= step]
        n = sum(max(0, draw[3]) for draw in recorder._draws)
        nominal = recorder._nominal * recorder._micro_per_step
        return StepContext(
            step=step,
            epoch=epoch,
            index=recorder._step - first,
            n_samples=n,
            batch_size=nominal if nominal > 0 else n,
            is_event=step in self.events,
            is_control=step + 1 in self.events,
            since_event=step - before[-1] if before else None,
        )

    def _is_first(self, optimizer: Optimizer) -> Watched | None:
        one = self._of(optimizer)
        return one if one is not None and one is self.watched[0] else None

    def draws(self, loader: Any, begin: Begin) -> Iterator[Any]:
        if changes_order(self.intervention) and not (self._ours or self._off or self._is_evaluation(loader)):
            try:
                reorder(loader, self.intervention, 0, self._orders)  # for good: this process is thrown away
            except Exception as error:  # nothing else can come of this arm
                self._fail(error)
                raise SystemExit(0) from error
        made = super().draws(loader, begin)
        return _Changed(self, made) if isinstance(made, Drawn) else made

    def _is_of_first(self) -> bool:
        """Whether the loss that backward is called on is one of the first training's, not of another optimizer's."""
        if not self.watched:
            return False
        first, *others = self.watched
        if first.recorder.loader is not None and not first.recorder._draws:
            return False  # its update with this batch has been made
        name = self._name_now
        return name in first.names or not any(name in one.names for one in others)

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        waiting = len(self._pending)
        super().backward(loss)
        if self._ours or self._off or len(self._pending) == waiting or not self._is_of_first():
            return loss
        at = self.at()
        changed = self.intervention.loss(at, loss)
        if changed is not loss:
            self._pending[-1] = self.intervention.loss(at, self._pending[-1]).detach()
        return changed

    def before_update(self, optimizer: Optimizer, *call: Any) -> None:
        super().before_update(optimizer, *call)
        one = None if self._ours or self._off else self._is_first(optimizer)
        if one is None:
            return
        if not self._begun:
            self._begun = True
            self.intervention.begin(one.recorder.model, optimizer)
        self._at = self.at()
        self.intervention.gradients(self._at, one.recorder.model)
        self.intervention.before_update(self._at, optimizer)

    def after_update(self, optimizer: Optimizer, *call: Any) -> None:
        one = None if self._ours or self._off else self._is_first(optimizer)
        if one is not None and self._at is not None:
            self.intervention.after_update(self._at, optimizer)
        super().after_update(optimizer, *call)

    def _nothing_else(self) -> bool:
        return False

    def _step(self, one: Watched) -> None:
        if one is self.watched[0]:
            self.losses.append(float(one.loss))
            self.sizes.append(sum(max(0, draw[3]) for draw in one.recorder._draws))
            if os.getppid() != self._parent:  # who asked for it is gone
                os._exit(1)
        super()._step(one)

    def skipped(self, n: int) -> None:
        """The batch was left out: no forward, no update."""
        self.losses.append(math.nan)
        self.sizes.append(n)

    def result(self) -> dict[str, Any]:
        """What the arm gave."""
        if not self.watched or not self.losses:
            return {"error": "the script made no update"}
        if changes_order(self.intervention) and not self._orders:
            return {"error": "no loader hands out the batches of its training, so that their order cannot be changed"}
        recorder = self.watched[0].recorder
        digest = hashlib.sha256()
        for _, p in recorder.model.named_parameters():
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "loss": numbers(self.losses),
            "n_samples": self.sizes,
            "batch_size": max(0, recorder._nominal * recorder._micro_per_step),
            "final_probe": numbers([self._final_probe()])[0],
            "weights": digest.hexdigest(),
        }

    def _final_probe(self) -> float:
        """The mean loss on fixed training samples after the training; nan where the loss is not on tape."""
        recorder = self.watched[0].recorder
        if recorder.loss_fn is None or recorder.loader is None:
            return math.nan
        with suppress(Exception), self._own():
            pieces = probeset.of(recorder.loader, recorder.model)
            if pieces:
                with frozen(recorder.model):
                    return float(np.mean([float(recorder.loss_fn(recorder.model, b)) for b in pieces]))
        return math.nan


class _Changed:
    """A pass whose batches go through the intervention."""

    def __init__(self, watch: ArmWatch, source: Any) -> None:
        self._watch, self._source = watch, source

    def __iter__(self) -> _Changed:
        return self

    def __len__(self) -> int:
        return len(self._source)

    def __next__(self) -> Any:
        watch = self._watch
        while True:
            batch = next(self._source)
            if watch._off:
                return batch
            recorder = watch.watched[0].recorder
            if not watch._begun:
                watch._begun = True
                watch.intervention.begin(recorder.model, recorder.optimizer)
            at = watch.at()
            changed = watch.intervention.batch(at, batch)
            if changed is not None:
                return changed
            watch.taping.cancel()
            recorder._draws = ()
            if recorder._micro_per_step == 1:
                watch.skipped(at.n_samples)
