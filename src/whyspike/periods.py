"""Find what repeats with a period that the run itself has: its epoch, its evaluations, its learning rate's cycle.

Two shapes are told apart: a spike or dip at one place of the period (`repeats`), and a smooth wave over all of it
(`waves`). The epoch is tested by itself, the other periods of the run with Holm's correction among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from whyspike.detect import MERGE_STEPS, detect
from whyspike.folding import as_own, folded, places
from whyspike.ownperiods import own_periods
from whyspike.repeats import MIN_AMPLITUDE, Repeat, merge, repeat, run_index
from whyspike.stats import holm
from whyspike.types import Event, Run
from whyspike.waves import Wave, wave

ALPHA = 0.01  # a named period is tested at this p
# Every run with epochs is looked at for a repeated spike, healthy ones included: it must be above all 999 surrogates.
# Of 1,800 periods that healthy trainings do not have p <= .01 makes 2 an event, this 1 (benchmarks/periodic_null.py).
SPIKE_ALPHA = 3 / 999
WAVE_ALPHA = 0.001  # a wave is looked for in every run, healthy ones included (tests/test_waves.py has the error rates)
LEAST_WAVE = 0.02  # nats; what a cycle's own curvature leaves of a loss that falls without noise stays below
VISIBLE_WAVE = 1.0  # of the noise of a single loss: a lower wave cannot be seen in the plot. Every healthy network
# remembers what it has just seen a little: up to .55 in 72 trainings on digits, with p down to 1e-4
FINE = 64  # stretches of the profile that is taken out of the loss
AGREEMENT = 0.7  # of the cycles: a habit, not a few epochs


@dataclass(frozen=True, kw_only=True)
class PeriodResult:
    """Whether a run repeats itself every `period` steps."""

    period: int
    phase: int | None  # index in the period where the pattern stands out most, from 0; None without a test
    amplitude: float  # nats: mean over the cycles of log loss minus its local median, at that phase
    p_value: float  # 1.0 without a test
    n_cycles: int
    minimum_detectable: float  # nats: a spike of this mean height would have been found
    shape: Literal["spike", "smooth"] | None = None  # which statistic was the surer one
    reason: str | None = None  # why there was no test
    origins: tuple[str, ...] = ()  # where the period comes from, in words
    of_epoch: bool = False  # it is counted from each epoch's first step
    spikes: Repeat | None = None
    wave: Wave | None = None

    @property
    def detectable(self) -> tuple[float, float]:
        """The spike and the wave (peak to trough) that would have been an event, in nats."""
        if self.wave is None:
            return float("inf"), float("inf")
        least = max(LEAST_WAVE, VISIBLE_WAVE * self.wave.noise)
        return max(MIN_AMPLITUDE, self.minimum_detectable), max(least, self.wave.minimum_detectable)


def named_period(
    run: Run, period: int | None = None, *, of_epoch: bool = False, seed: int = 0, n_null: int = 999
) -> PeriodResult:
    """Test whether the loss repeats itself with a period; the epoch unless another is named.

    Three statistics: the highest place of the cycle, the lowest, and the harmonics of a smooth wave. The smallest p is
    tripled for having looked three times.

    Args:
        period: in steps; None takes the run's own epoch.
        of_epoch: whether it is counted from each epoch's first step, not from step 0.
        n_null: surrogates; p is never below 3 / (n_null + 1).
    """
    period = period or run.steps_per_epoch
    if not period or period < 2:
        given = "no steps_per_epoch is known" if not period else f"the period is {period}"
        return _untested(period or 0, f"{given}; a period of 2 steps or more is needed")
    own = as_own(run, period, of_epoch=of_epoch)
    smooth = wave(own, seed=seed)
    found = repeat(own, n_null, seed)
    if isinstance(found, str):
        return replace(
            _untested(period, found),
            wave=smooth,
            shape="smooth",
            p_value=min(1.0, 3 * smooth.p_value),
            of_epoch=of_epoch,
        )
    surer = found.p_value <= smooth.p_value or 3 * found.p_value <= ALPHA
    return PeriodResult(
        period=period,
        phase=found.index,
        amplitude=found.amplitude,
        p_value=float(min(1.0, 3 * min(found.p_value, smooth.p_value))),
        n_cycles=found.n_cycles,
        minimum_detectable=found.minimum_detectable,
        # A sawtooth is no higher at its peak than from trough to peak; a spike on top of one is.
        shape="spike"
        if found.pointed and surer and (not smooth.is_slope or abs(found.amplitude) > smooth.amplitude)
        else "smooth",
        of_epoch=of_epoch,
        spikes=found,
        wave=smooth,
    )


def period_results(run: Run, *, seed: int = 0) -> tuple[PeriodResult, ...]:
    """The tests of every period that the run has; the p of all but the epoch are corrected by Holm's method."""
    owned = own_periods(run)
    made = []
    for own in owned:
        n_null = 999 if own.period == run.steps_per_epoch else 999 * len(owned)
        result = named_period(run, own.period, of_epoch=own.of_epoch, seed=seed, n_null=n_null)
        made.append(replace(result, origins=own.origins))
    first = int(bool(owned) and owned[0].period == run.steps_per_epoch)
    corrected = holm([r.p_value for r in made[first:]])
    return (*made[:first], *(replace(r, p_value=p) for r, p in zip(made[first:], corrected, strict=True)))


def periodic_events(
    run: Run, events: Sequence[Event], results: Sequence[PeriodResult] | None = None, *, seed: int = 0
) -> tuple[Event, ...]:
    """Put what the loss does in every cycle of a period into one event of kind `periodic`.

    Spikes or dips that sit at one place of every cycle are merged. The folded loss decides, so that a pattern is
    found also where its single occurrences stay below the detector's line. A smooth wave becomes an event that spans
    whole cycles. Other events stay as they are. Ids are numbered anew in the order of the steps.

    Args:
        results: of `period_results`, where they are known already.
    """
    made: list[Event] = list(events)
    patterns: list[Event] = []
    inside = False  # a pattern is counted from each epoch's start, so that it repeats with the epoch, too
    # The shorter first: what repeats every 50 steps repeats every 100, too.
    for result in sorted(period_results(run, seed=seed) if results is None else results, key=lambda r: r.period):
        known = any(result.period % p.period == 0 for p in patterns if p.period)
        if known or (inside and result.period == run.steps_per_epoch):
            continue
        own = as_own(run, result.period, of_epoch=result.of_epoch)
        merged = None
        if result.spikes is not None and result.shape == "spike" and _is_certain(result, result.spikes):
            merged = merge(own, made, result.spikes)
        if merged is not None:
            *made, pattern = merged
            patterns.append(pattern)
        elif (pattern := _wave_event(own, result)) is not None:
            patterns.append(pattern)
            made = _beside_the_wave(own, made)
        inside = inside or (bool(patterns) and result.of_epoch and patterns[-1].period == result.period)
    if not patterns:
        return tuple(events)
    if len(patterns) > 1:  # an episode may begin with one pattern and peak with the other
        near = {int(s) + k for p in patterns if not p.is_wave for s in occurrences(run, p) for k in range(6)}
        made = [e for e in made if not (e.kind in ("spike", "dip") and {e.step, e.last_step} <= near)]
    ordered = sorted([*made, *patterns], key=lambda e: e.step)
    return tuple(replace(e, id=f"e{k}") for k, e in enumerate(ordered, 1))


def origins(run: Run, event: Event) -> tuple[str, ...]:
    """Where the period of an event comes from, in words; several where the run cannot tell them apart."""
    return next((own.origins for own in own_periods(run) if own.period == event.period), ())


def occurrences(run: Run, event: Event) -> np.ndarray:
    """The steps of a periodic event: those at its place of the cycle, from its first to its last, int64 [K].

    For any other event, its first step.
    """
    if event.kind != "periodic" or not event.period:
        return np.array([event.step], dtype=np.int64)
    anchored = any(own.of_epoch for own in own_periods(run) if own.period == event.period)
    index = run_index(as_own(run, event.period, of_epoch=anchored))
    steps = run.step[index == index[int(np.searchsorted(run.step, event.step))]]
    return steps[(steps >= event.step) & (steps <= event.last_step)]


# --------------------------------------------------------------------------- how it is done


def _untested(period: int, reason: str) -> PeriodResult:
    return PeriodResult(
        period=period, phase=None, amplitude=0.0, p_value=1.0, n_cycles=0,
        minimum_detectable=float("inf"), reason=reason,
    )  # fmt: skip


def _is_certain(result: PeriodResult, found: Repeat) -> bool:
    """Whether chance does not draw such a spike: of a large table fewer surrogates are drawn, and all must be lower."""
    return result.p_value <= max(SPIKE_ALPHA, min(ALPHA, 3 / found.n_null))


def _wave_event(run: Run, result: PeriodResult) -> Event | None:
    """The event of a wave that is certain, large enough to be seen, and a habit; None otherwise."""
    found = result.wave
    if found is None or found.folded is None or found.p_value > WAVE_ALPHA or result.p_value > ALPHA:
        return None
    if found.agreement < AGREEMENT or found.amplitude < max(LEAST_WAVE, VISIBLE_WAVE * found.noise):
        return None
    step = _first_step(run, found)
    last = step + found.n_cycles * found.period - 1
    probe = run.signals.get("probe")
    return Event(
        id="",
        kind="periodic",
        step=step,
        last_step=last,
        period=found.period,
        reported=_factor(found),
        state=_factor(wave(run, probe)) if probe is not None else None,
    )


def _beside_the_wave(run: Run, events: Sequence[Event]) -> list[Event]:
    """The events that are still there when the wave is taken out of the loss; the others are its rise or its fall."""
    if not events:
        return []
    assert run.steps_per_epoch
    shape = folded(run, min(FINE, run.steps_per_epoch))
    if not shape.logarithmic:
        return list(events)
    profile = np.where(np.isnan(shape.profile), 0.0, shape.profile)
    _, phase = places(run, run.step)
    at = np.minimum((phase * len(profile)).astype(np.int64), len(profile) - 1)
    plain = replace(run, loss=np.where(phase >= 0, run.loss * np.exp(-profile[at]), run.loss))
    left = [(e.step - MERGE_STEPS, e.last_step + MERGE_STEPS) for e in detect(plain)]
    return [
        e
        for e in events
        if e.kind not in ("spike", "dip", "level-shift")
        or any(first <= e.last_step and e.step <= last for first, last in left)
    ]


def _first_step(run: Run, found: Wave) -> int:
    """The first step of the first cycle that a wave was seen in."""
    assert found.folded is not None
    cycle, phase = places(run, run.step)
    rows = np.flatnonzero(phase >= 0)
    first = np.unique(cycle[rows])[found.folded.first]
    row = rows[np.argmax(cycle[rows] == first)]
    return int(run.step[row]) - round(float(phase[row]) * found.period)


def _factor(found: Wave) -> float | None:
    """Peak over trough; None without a folded series, or where it has no logarithm."""
    if found.folded is None or not found.folded.logarithmic:
        return None
    return float(np.exp(found.amplitude))
