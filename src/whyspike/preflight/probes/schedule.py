"""The learning rate of every update to come: the scheduler is run to the end on a copy."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

from whyspike.cause import Setup
from whyspike.loader_ids import length
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.types import Finding, Note

MOST = 1_000_000  # updates that are simulated
OVER = 0.01  # of the peak: nothing is learned below
EARLY = 0.5  # of the training: a schedule that is over by then was made for another number of steps
AGAIN = 1.5  # times the learning rate before: it goes up
JUMP = 0.2  # of the peak, in one update: a restart; a warm-up goes up by less
BACK = 0.02  # of the peak: so far a cosine must have come up again to matter


def _turn(lr: tuple[float, ...]) -> tuple[float, float]:
    """The lowest learning rate after the peak, and the highest after that."""
    top = lr.index(max(lr))
    low = min(range(top, len(lr)), key=lr.__getitem__)
    return lr[low], max(lr[low:])


class Schedule(Probe):
    """The learning rate of every update to come: the scheduler is run to the end on a copy."""

    words = "running the schedule to the end"

    def measure(self, looked: Looked) -> dict[str, Any]:
        """The learning rate of the first group at every update, and why it ended where it raised."""
        training = looked.training
        per_epoch = length(training.loader)
        if training.scheduler is None or not per_epoch:
            return {}
        total = min(MOST, -(-per_epoch // training.accumulate) * training.epochs)
        values, raised = [], None
        try:
            optimizer, scheduler = copy.deepcopy((training.optimizer, training.scheduler))
        except Exception:  # a lambda that holds what cannot be copied
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that step() comes before optimizer.step()
            try:
                for _ in range(total):
                    values.append(float(optimizer.param_groups[0]["lr"]))
                    scheduler.step()
            except TypeError:  # ReduceLROnPlateau wants a number that is not there yet
                return {}
            except Exception as error:
                if len(values) < total:
                    raised = f"{type(error).__name__}: {error}"
        return {"schedule": tuple(values), "schedule_raised": raised}

    def say(self, setup: Setup) -> Finding | Note | None:
        lr = setup.schedule
        if len(lr) < 2:
            return None
        if setup.schedule_raised is not None:
            return Finding(
                cause="lr-restart",
                text=f"the scheduler raises at update {len(lr):,}",
                observed=setup.schedule_raised,
                expected="a schedule as long as the training",
                cure="make it for all updates: epochs * updates per epoch, stepped once per update",
            )
        if any(not math.isfinite(v) or v < 0 for v in lr):
            at = next(k for k, v in enumerate(lr) if not math.isfinite(v) or v < 0)
            return Finding(
                cause="lr-restart",
                text=f"the learning rate is {lr[at]:g} at update {at:,}",
                observed=f"{lr[at]:g}",
                expected="0 or more",
                cure="make the schedule for all updates: epochs * updates per epoch",
            )
        peak = max(lr)
        top = lr.index(peak)
        over = next((k for k in range(top, len(lr)) if max(lr[k:]) <= OVER * peak), None)
        if over is not None and over < EARLY * len(lr):
            return Finding(
                cause="lr-restart",
                text="the schedule is over long before the training: was it made for epochs, not for updates?",
                observed=f"below 1 % of its peak from update {over:,} of {len(lr):,} on",
                expected="a schedule as long as the training",
                cure="make it for all updates: epochs * updates per epoch; or step it once per epoch",
            )
        rises = [k for k in range(1, len(lr)) if lr[k] > AGAIN * lr[k - 1] and lr[k] - lr[k - 1] > JUMP * peak]
        low, after = _turn(lr)
        # A cyclic schedule turns as well, and is meant to.
        if setup.facts.get("scheduler") == "CosineAnnealingLR" and after > AGAIN * low and after > BACK * peak:
            return Finding(
                cause="lr-restart",
                text="the schedule rises again at the end: a cosine goes up past its T_max",
                observed=f"from {low:.3g} up to {after:.3g}",
                expected="a fall to the end",
                cure="CosineAnnealingLR(optimizer, T_max=epochs * updates per epoch)",
            )
        if rises:
            return Note(
                id="lr-restart",
                text=f"the learning rate jumps up {len(rises)} times, first at update {rises[0]:,} "
                f"({lr[rises[0] - 1]:.3g} to {lr[rises[0]]:.3g}): the loss will jump with it, and that is meant so",
            )
        return None
