"""What a script's order does: whole runs in another one, each epoch a pair.

As `epoch_experiment.py`, for a script that no tape carries. What is measured is the amplitude, in an epoch, of the
pattern that the other epochs of the unchanged run have in common. An arm keeps its order throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from whyspike.cause import Cause
from whyspike.excess import pattern_excess
from whyspike.pattern import pattern, trend_over
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Event, Run, Suspicion, Trial


def epochs_of(run: Run) -> list[int]:
    """The whole epochs that can be measured: not the first, in which the loss falls most."""
    if run.epoch is None or not run.steps_per_epoch:
        return []
    names, counts = np.unique(run.epoch, return_counts=True)
    return [int(e) for e, n in zip(names, counts, strict=True) if n == run.steps_per_epoch and e > names[0]]


def trials_of(
    run: Run,
    cause: Cause,
    suspicion: Suspicion,
    changes: Sequence[tuple[str, Intervention]],
    losses: Mapping[tuple[str, str], np.ndarray],
    event: Event,
) -> list[Trial]:
    """The trials of one cause.

    Args:
        changes: (arm, intervention) of the runs.
        losses: of every run, [T] from step 0 on, by (cause, arm); `("baseline", "")` is the unchanged one.
    """
    arms: list[tuple[ArmName, str, np.ndarray]] = [("baseline", BASELINE.words, losses["baseline", ""])]
    for arm, change in changes:
        kind: ArmName = "intervention" if arm == "intervention" else "placebo"
        arms.append((kind, change.words, losses[suspicion.cause, arm]))
    made = []
    for arm, words, values in arms:
        other = replace(run, loss=values[: len(run)]) if len(values) >= len(run) else None
        for epoch in epochs_of(run) if other is not None else ():
            assert other is not None
            assert run.epoch is not None
            found = pattern(run, without=[epoch])
            if found is None:
                continue
            rows = np.flatnonzero(run.epoch == epoch)
            own = tuple(map(float, other.loss[rows]))
            trend = trend_over(other, epoch)
            before = run.loss[max(0, rows[0] - 64) : rows[0]]
            made.append(
                Trial(
                    cause=cause.id,
                    arm=arm,
                    words=words,
                    event=event.id,
                    pair=epoch,
                    backend="scratch",
                    first_step=int(run.step[rows[0]]),
                    event_step=int(run.step[rows[0]]),
                    reported=own,
                    state=(),
                    reported_reference=float(np.nanmedian(before)) if len(before) else math.nan,
                    state_reference=math.nan,
                    excess=pattern_excess(found, reported=own, drift=0.0 if math.isnan(trend) else trend),
                    reproduced=True if arm == "baseline" else None,
                    noise=0.0 if arm == "baseline" else None,
                )
            )
    return made
