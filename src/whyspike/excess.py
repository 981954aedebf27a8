"""How much an event costs: the area above the level before it, in log-loss times steps.

Five measures, because a number that is plotted, a network that is damaged and a damage that grows are three things:

- `state`: area of the probe loss above its level before the event, from the event on;
- `reported`: area of the logged loss above its median over the 64 steps before, over the event's own steps;
- `growth`: area of the probe loss above its level right after the event's first step, over the steps that follow:
  what the optimizer's memory adds to a step that is already made;
- `dip`: as `reported`, below the level instead of above it;
- `pattern`: of a replayed epoch, the amplitude (lowest to highest phase, nats) of the pattern that the other epochs of
  the run have in common, less the drift of the probe; negative where the pattern is upside down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from whyspike.pattern import Pattern

Measure = Literal["state", "reported", "growth", "dip", "pattern"]


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
) -> float:
    """The excess of one replay.

    Args:
        measure: any but "pattern", which `pattern_excess` measures.
        onset: position of the event's first step in `reported` and `state`.
        length: steps of the event itself, for the logged loss.
    """
    if measure == "reported":
        return area_above(reported[onset : onset + length], reported_reference)
    if measure == "dip":
        own = reported[onset : onset + length]
        return sum(max(0.0, -log_rise(v, reported_reference)) for v in own if not math.isnan(v))
    if measure == "growth":
        return area_above(state[onset + 1 :], max(state[onset], state_reference))
    return area_above(state[onset:], state_reference)


def pattern_excess(pattern: Pattern, *, reported: Sequence[float], state_before: float, state_after: float) -> float:
    """The excess of one replayed epoch: the amplitude of the pattern in it, nats.

    Args:
        pattern: of the other epochs.
        reported: the logged losses of the epoch.
        state_before, state_after: the probe loss before its first and after its last step. What the network itself
            gained or lost over the epoch is no pattern.
    """
    return pattern.amplitude_in(reported, drift=log_rise(state_after, state_before))
