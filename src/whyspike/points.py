"""A log that holds every k-th step, seen as points: the k-th step apart is the next one.

What looks for events counts steps: 64 before, 30 between two episodes. In a log of every 50th step these are 64 and 30
points. So a run is turned into points, looked at, and what is found is put back into the steps that the log names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import TYPE_CHECKING

import numpy as np

from whyspike.detect import THINNED
from whyspike.types import Event, Run

if TYPE_CHECKING:
    from whyspike.periods import PeriodResult

MEETING = "points until the log holds the same step of the epoch again"
REGULAR = 0.9  # of the distances between neighbouring rows are the same


def spacing(step: np.ndarray) -> tuple[int, bool]:
    """The most frequent distance between neighbouring rows in steps, and whether nearly all have it."""
    gaps = np.diff(step)
    if not len(gaps):
        return 1, True
    if (gaps == gaps[0]).all():
        return max(1, int(gaps[0])), True
    values, counts = np.unique(gaps, return_counts=True)
    return max(1, int(values[counts.argmax()])), bool(counts.max() >= REGULAR * len(gaps))


def as_points(run: Run) -> Run:
    """The run with its rows for steps. A run of every step is returned as it is.

    The position in the epoch becomes that of the point among the epoch's points. Where an epoch does not hold a whole
    number of points, neighbouring epochs differ by one.
    """
    every, _ = spacing(run.step)
    if not len(run) or (every == 1 and run.step[-1] - run.step[0] + 1 <= len(run) / REGULAR):
        return run
    index = epoch_points = None
    if run.epoch is not None:
        starts = np.flatnonzero(np.diff(run.epoch, prepend=run.epoch[0] - 1) != 0)
        index = np.arange(len(run)) - np.repeat(starts, np.diff(np.append(starts, len(run))))
        if run.index is not None:  # a log that begins inside an epoch
            index = index + np.repeat(run.index[starts] // every, np.diff(np.append(starts, len(run))))
    if run.steps_per_epoch:
        epoch_points = max(1, round(run.steps_per_epoch / every))
    signals = {
        name: replace(s, step=np.searchsorted(run.step, s.step, side="left").clip(0, len(run) - 1))
        for name, s in run.signals.items()
        if name == "probe"
    }
    return replace(
        run,
        step=np.arange(len(run)),
        index=index,
        steps_per_epoch=epoch_points,
        signals=signals,
        facts={THINNED: every, **_meeting(run, every)},  # the intervals in the run's facts are in steps
        marks=(),
    )


def _meeting(run: Run, every: int) -> dict[str, object]:
    """After how many points the log holds the same step of the epoch again, where that is not every epoch."""
    size = run.steps_per_epoch
    if not size or size % every == 0:
        return {}
    return {MEETING: lcm(size, every) // every}


def in_steps(run: Run, events: Sequence[Event]) -> tuple[Event, ...]:
    """Events of `as_points(run)` in the steps of the run."""
    points = as_points(run)
    if points is run:
        return tuple(events)

    def step(point: int) -> int:
        return int(run.step[min(max(point, 0), len(run) - 1)])

    made = []
    for e in events:
        period = _period(run, points, e.period) if e.period else None
        first, last = step(e.step), step(e.last_step)
        if e.is_wave and e.period and period:  # it spans whole periods here, too
            last = first + (e.last_step + 1 - e.step) // e.period * period - 1
        made.append(replace(e, step=first, last_step=last, period=period))
    return tuple(made)


def periods_in_steps(run: Run, periods: Sequence[PeriodResult]) -> tuple[PeriodResult, ...]:
    """Tests of the periods of `as_points(run)` with the periods in the steps of the run."""
    points = as_points(run)
    return (
        tuple(periods) if points is run else tuple(replace(r, period=_period(run, points, r.period)) for r in periods)
    )


def _period(run: Run, points: Run, period: int) -> int:
    if period == points.steps_per_epoch and run.steps_per_epoch:
        return run.steps_per_epoch
    return period * spacing(run.step)[0]
