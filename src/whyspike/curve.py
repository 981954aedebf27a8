"""What the curve alone shows beside single events: a staircase, the same noise again, the wave of sorted batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from whyspike.echo import Echo, find_echo
from whyspike.megabatches import Oscillation, find_oscillation
from whyspike.pattern import rises_inside
from whyspike.points import spacing
from whyspike.staircase import Staircase, find_staircase
from whyspike.types import Event, Run

SHIFT = 4  # points of a level shift: the level before it is clear, and so is the one after


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The patterns of a loss curve; None where there is none."""

    staircase: Staircase | None = None
    echo: Echo | None = None
    oscillation: Oscillation | None = None


def look(run: Run) -> Curve:
    """Look at the curve of a run. Where its sample ids are known, they say better what came again."""
    echo = find_echo(run) if run.sample_ids is None else None
    oscillation = find_oscillation(run)
    if echo is not None and oscillation is not None:
        # A wave in the same phase in every epoch repeats itself after an epoch as well, but not only then.
        if oscillation.correlation >= 0.5 * echo.correlation:
            echo = None
        else:
            oscillation = None
    return Curve(
        staircase=find_staircase(run),
        echo=echo if echo is not None and echo.whole else None,
        oscillation=oscillation,
    )


def with_patterns(run: Run, curve: Curve, events: Sequence[Event]) -> tuple[Event, ...]:
    """The events of a run with those of its patterns, numbered anew in the order of their steps.

    A level shift at a boundary of the staircase, and a wave over the epoch that is nothing but the staircase, become
    its steps.
    """
    made = list(events)
    if (stairs := curve.staircase) is not None:
        made = [e for e in made if not _of_stairs(run, stairs, e)]
        every, _ = spacing(run.step)
        made += [
            Event(
                id="", kind="level-shift", step=step, last_step=step + (SHIFT - 1) * every, reported=after / before
            )
            for step, (before, after) in zip(stairs.steps, stairs.levels, strict=True)
        ]  # fmt: skip
    if (again := curve.echo) is not None:
        first, last = again.peak
        made.append(
            Event(id="", kind="periodic", step=first, last_step=last, period=again.lag, reported=again.peak_height)
        )
    if (ramp := curve.oscillation) is not None:
        last = ramp.first + (ramp.last - ramp.first + 1) // ramp.period * ramp.period - 1
        made.append(
            Event(
                id="", kind="periodic", step=ramp.first, last_step=last, period=ramp.period, reported=exp(ramp.height)
            )
        )  # fmt: skip
    if len(made) == len(events) and not any(e.id == "" for e in made):
        return tuple(events)
    ordered = sorted(made, key=lambda e: e.step)
    return tuple(replace(e, id=f"e{k}") for k, e in enumerate(ordered, 1))


def _of_stairs(run: Run, stairs: Staircase, event: Event) -> bool:
    """Whether an event is a step of the staircase, as the detector or the test of periods saw it."""
    if event.kind == "periodic":  # what rises inside the epochs is more than a staircase
        return event.period == run.steps_per_epoch and event.is_wave and not rises_inside(run)
    every, _ = spacing(run.step)
    near = 16 * every  # the detector dates an abrupt step to within as many points
    return event.kind in ("level-shift", "dip") and any(
        first - near <= event.step <= last for first, last in zip(stairs.steps, stairs.last, strict=True)
    )
