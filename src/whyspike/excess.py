"""How much an event costs: the area above the level before it, in log-loss times steps.

Ten measures, because a number that is plotted, a network that is damaged and a damage that grows are three things:

- `state`: area of the probe loss above its level before the event, from the event on;
- `reported`: area of the logged loss above its median over the 64 steps before, over the event's own steps;
- `growth`: area of the probe loss above its level right after the event's first step, over the steps that follow:
  what the optimizer's memory adds to a step that is already made;
- `dip`: as `reported`, below the level instead of above it;
- `height`: as `reported`, but what lies below the level counts against it, so that noise adds nothing on average;
- `deviation`: as `height`, counted downwards for an event that lies below its level;
- `onset`: as `deviation`, on the event's first step alone: where what makes it acts within one step, and an episode has
  several such steps with ordinary ones between them;
- `jump`: mean log of the logged loss over the eight steps from the event on, less that over the eight before it, both
  of the same replay; counted in the direction in which the record jumps;
- `pattern`: of a replayed epoch, the amplitude (lowest to highest phase, nats) of the pattern that the other epochs of
  the run have in common, less the drift of the network; negative where the pattern is upside down;
- `rise`: as `pattern`, of the epoch's plain course, from which no drift is taken. Where every sample is visited once an
  epoch, what the network gains by a sample's own visits shows at the next epoch's begin and not within the epoch, so
  that a line through both would make a rise of a flat course. Taken from it is what the same batches cost a network
  that had not seen their order: an epoch whose hard samples came late by chance rises without forgetting anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from whyspike.pattern import Pattern

Measure = Literal["state", "reported", "growth", "dip", "height", "deviation", "onset", "jump", "pattern", "rise"]


JUMP_STEPS = 8  # on either side
CAP = 50.0  # nats; a replay that overflows counts as this much per step, so that arms stay comparable


def log_rise(value: float, reference: float) -> float:
    """log(value / reference) within ± CAP; relative to the reference's size where a logarithm does not exist.

    A value that is not finite counts as CAP.
    """
    if not math.isfinite(value):
        return CAP
    if value > 0 and reference > 0:
        return max(-CAP, min(CAP, math.log(value / reference)))
    return max(-CAP, min(CAP, (value - reference) / max(abs(reference), 1e-12)))


def area_above(values: Iterable[float], reference: float) -> float:
    """Sum of the positive rises over the reference, in nats times steps. Skipped steps (nan) count nothing."""
    return sum(max(0.0, log_rise(v, reference)) for v in values if not math.isnan(v))


def excess(
    measure: Measure,
    *,
    reported: Sequence[float],
    state: Sequence[float],
    onset: int,
    length: int,
    reported_reference: float,
    state_reference: float,
    direction: float = 1.0,
) -> float:
    """The excess of one replay.

    Args:
        measure: any but "pattern" and "rise", which `pattern_excess` measures.
        onset: position of the event's first step in `reported` and `state`.
        length: steps of the event itself, for the logged loss.
        direction: -1.0 where the record jumps down, for "jump", or lies below its level, for "deviation" and
            "onset".
    """
    if measure == "jump":
        return direction * jump(reported, onset, reported_reference)
    if measure == "reported":
        return area_above(reported[onset : onset + length], reported_reference)
    if measure == "dip":
        own = reported[onset : onset + length]
        return sum(max(0.0, -log_rise(v, reported_reference)) for v in own if not math.isnan(v))
    if measure in ("height", "deviation", "onset"):
        own = reported[onset : onset + (1 if measure == "onset" else length)]
        return direction * sum(log_rise(v, reported_reference) for v in own if not math.isnan(v))
    if measure == "growth":
        return area_above(state[onset + 1 :], max(state[onset], state_reference))
    return area_above(state[onset:], state_reference)


def jump(reported: Sequence[float], onset: int, reference: float) -> float:
    """By how many nats the logged loss jumps at `onset`: eight steps from it on against eight before it, or fewer."""
    before = [log_rise(v, reference) for v in reported[max(0, onset - JUMP_STEPS) : onset] if not math.isnan(v)]
    after = [log_rise(v, reference) for v in reported[onset : onset + JUMP_STEPS] if not math.isnan(v)]
    return sum(after) / len(after) - sum(before) / len(before) if before and after else math.nan


def pattern_excess(pattern: Pattern, *, reported: Sequence[float], drift: float, beside: Sequence[float] = ()) -> float:
    """The excess of one replayed epoch: the amplitude of the pattern in it, nats.

    Args:
        pattern: of the other epochs.
        reported: the logged losses of the epoch.
        drift: by how many nats of log loss the network itself changed over the epoch; what it gained or lost for good
            is no pattern.
        beside: what the same batches cost by their samples alone; none when not given.
    """
    return pattern.amplitude_in(reported, drift, beside)
