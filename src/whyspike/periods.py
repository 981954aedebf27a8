"""Find what repeats with a period that the run itself has: its epoch.

The loss is folded over the period and compared with surrogates in which every cycle is rotated on its own. A
rotated cycle keeps its values, and but for one cut their order, and loses only its phase, so that no table of F or
chi-squared is needed; those cry wolf on 46 to 89 % of autocorrelated series (`segment circular shift`, after
Theiler et al. 1992). Two shapes are told apart: a spike or dip at one place of the period, and a wave over all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np

from whyspike.detect import MEDIAN_STEPS
from whyspike.folding import places
from whyspike.types import Event, Run
from whyspike.waves import MIN_CYCLES, Wave, wave

ALPHA = 0.01  # a pattern is reported below this p
ENOUGH = 10  # surrogates as high as the observed value end the search (Besag & Clifford 1991)
TURNED = 64  # more cycles than that are turned in groups of neighbours
MIN_AMPLITUDE = 0.1  # nats; a spike that repeats with less is significant in a long run, and of no interest
WAVE_ALPHA = 0.001  # a wave is looked for in every run, healthy ones included (tests/test_waves.py has the error rates)
LEAST_WAVE = 0.02  # nats; what a cycle's own curvature leaves of a loss that falls without noise stays below
VISIBLE_WAVE = 1.0  # of the noise of a single loss: a lower wave cannot be seen in the plot. Every healthy network
# remembers what it has just seen a little: up to .55 in 72 trainings on digits, with p down to 1e-4
POINTED = 0.7  # of a spike's height is gone an eighth of the period before it; of a sawtooth's, about a third
AGREEMENT = 0.7  # of the cycles: a habit, not a few epochs


@dataclass(frozen=True, kw_only=True)
class PeriodResult:
    """Whether a run repeats itself every `period` steps."""

    period: int
    phase: int | None  # index in the period where the pattern stands out most, from 0; None without a test
    amplitude: float  # nats: mean over the cycles of log loss minus its local median, at that phase
    p_value: float  # 1.0 without a test
    n_cycles: int
    minimum_detectable: float  # nats: a spike of this mean height would have been found with p = 1 %
    shape: Literal["spike", "smooth"] | None = None  # which statistic was the surer one
    reason: str | None = None  # why there was no test


def named_period(run: Run, period: int | None = None, *, seed: int = 0, n_null: int = 999) -> PeriodResult:
    """Test whether the loss repeats itself with a period; the epoch unless another is named.

    Three statistics: the highest phase (spikes) and the lowest (dips), which share one set of surrogates, and the
    harmonics of a smooth wave (`waves`). The smallest p is tripled for having looked three times. For spikes and dips
    a residual is the loss over its local median, minus 1, shrunk by sqrt(n / batch_size) for smaller batches: the mean
    of so many more noisy values, without the bias that a logarithm would give them.

    Args:
        period: in steps; None takes the run's own epoch.
        n_null: surrogates; p is never below 3 / (n_null + 1).
    """
    own = period is None or period == run.steps_per_epoch
    period = period or run.steps_per_epoch
    if not period or period < 2:
        given = "no steps_per_epoch is known" if not period else f"the period is {period}"
        return _untested(period or 0, 0, f"{given}; a period of 2 steps or more is needed")
    table = _cycles(run, period, own)
    n_cycles = len(table)
    if n_cycles < MIN_CYCLES:
        given = f"the run has {n_cycles} cycles of {period} steps"
        return _untested(period, n_cycles, f"{given}; at least {MIN_CYCLES} are needed")
    x, y = _residuals(run, period)
    # A step that is missing or not finite counts as ordinary.
    usable = (table >= 0) & np.isfinite(x[table])
    if usable.mean() < 0.5:
        return _untested(period, n_cycles, "over half of the losses in the cycles are not finite")
    spikes, waves = np.where(usable, x[table], 0.0), np.where(usable, y[table], 0.0)
    # More cycles are averaged with their neighbours, and turned together.
    grouped = np.add.reduceat(spikes, np.arange(0, n_cycles, -(-n_cycles // TURNED)), axis=0)
    grouped /= np.diff(np.append(np.arange(0, n_cycles, -(-n_cycles // TURNED)), n_cycles))[:, None]
    lower, upper = _statistics(grouped)
    observed = np.array([lower.max(), -upper.min()]) - 1e-12
    rng = np.random.default_rng(seed)
    null: list[tuple[float, float]] = []
    columns, above = np.arange(period), np.zeros(2)
    while len(null) < min(n_null, max(399, int(3e7 / grouped.size))) and (above.min() < ENOUGH or len(null) < 99):
        turned = (columns + rng.integers(0, period, (len(grouped), 1))) % period
        low, up = _statistics(np.take_along_axis(grouped, turned, 1))
        null.append((low.max(), -up.min()))
        above += np.array(null[-1]) >= observed
    p_spike, p_dip = (1 + above) / (len(null) + 1)
    smooth = wave(run, period=period, seed=seed)
    p_smooth = smooth.p_value
    dips = p_dip < p_spike or (p_dip == p_spike and -upper.min() > lower.max())
    sharp = min(p_spike, p_dip)
    phase = int(upper.argmin() if dips else lower.argmax())
    pointed = not smooth.is_slope and _is_pointed(waves.mean(axis=0), phase, dips=dips)
    return PeriodResult(
        period=period,
        phase=phase,
        amplitude=float(waves[usable[:, phase], phase].mean()) if usable[:, phase].any() else 0.0,
        p_value=float(min(1.0, 3 * min(sharp, p_smooth))),
        n_cycles=n_cycles,
        minimum_detectable=float(np.log1p(np.quantile([low for low, _ in null], 0.99))),
        shape="spike" if pointed and (sharp <= p_smooth or 3 * sharp <= ALPHA) else "smooth",
    )


def periodic_events(run: Run, events: Sequence[Event], *, seed: int = 0) -> tuple[Event, ...]:
    """Put what the loss does in every epoch into one event of kind `periodic`.

    Spikes or dips that sit at one index of every epoch are merged. The folded loss decides, so that a pattern is
    found also where its single occurrences stay below the detector's line. A smooth wave becomes an event that spans
    whole epochs. Other events stay as they are. Ids are numbered anew in the order of the steps.
    """
    result = named_period(run, seed=seed)
    if result.phase is not None and result.shape == "spike" and result.p_value <= ALPHA:
        merged = _with_spikes(run, events, result)
        if merged is not None:
            return _numbered(merged)
    pattern = _wave_event(run, wave(run, seed=seed))
    return tuple(events) if pattern is None else _numbered([*events, pattern])


def is_wave(event: Event) -> bool:
    """Whether a periodic event is a smooth wave: it spans whole periods, a repeated spike goes from first to last."""
    return bool(event.kind == "periodic" and event.period and (event.last_step + 1 - event.step) % event.period == 0)


def _numbered(events: Sequence[Event]) -> tuple[Event, ...]:
    ordered = sorted(events, key=lambda e: e.step)
    return tuple(replace(e, id=f"e{k}") for k, e in enumerate(ordered, 1))


def _wave_event(run: Run, found: Wave) -> Event | None:
    """The event of a wave that is certain, large enough to be seen, and a habit; None otherwise."""
    if found.p_value > WAVE_ALPHA or found.agreement < AGREEMENT or found.folded is None:
        return None
    if found.amplitude < max(LEAST_WAVE, VISIBLE_WAVE * found.noise):
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
        state=_factor(wave(run, probe, period=found.period)) if probe is not None else None,
    )


def _with_spikes(run: Run, events: Sequence[Event], result: PeriodResult) -> list[Event] | None:
    """The events with those of the pattern merged into one; None when the pattern is too low, or no habit."""
    assert result.phase is not None
    rows = _at_index(run, result.phase)
    x, _ = _residuals(run, result.period)
    height = np.log(np.maximum(heights(run, rows), 1e-300))
    seen = np.isfinite(height)
    if seen.sum() < MIN_CYCLES or abs(np.median(height[seen])) < MIN_AMPLITUDE or abs(result.amplitude) < MIN_AMPLITUDE:
        return None
    sign = 1.0 if result.amplitude > 0 else -1.0
    if sign * np.median(height[seen]) <= 0 or np.mean(sign * height[seen] > 0) < 0.7:
        return None  # a few high epochs, not a habit
    # An event belongs to the pattern when its highest step is an occurrence, or follows one within five steps.
    near = {int(r) + k for r in rows for k in range(6)}
    rest: list[Event] = []
    for event in events:
        first, last = np.searchsorted(run.step, [event.step, event.last_step + 1])
        span = np.abs(x[first:last])
        ours = event.kind in ("spike", "dip") and len(span) and np.isfinite(span).any()
        peak = int(first + np.nanargmax(span)) if ours else -1
        if not ours:
            rest.append(event)
        elif peak not in near:
            rest.append(_trimmed(run, event, x, peak, near) if first in near else event)
        elif first not in near:
            rest.append(event)
    pattern = Event(
        id="",
        kind="periodic",
        step=int(run.step[rows[seen.argmax()]]),
        last_step=int(run.step[rows[len(seen) - 1 - seen[::-1].argmax()]]),
        period=result.period,
        reported=float(np.exp(np.median(height[seen]))),
        state=_state(run, rows),
    )
    return [*rest, pattern]


def occurrences(run: Run, event: Event) -> np.ndarray:
    """The steps of a periodic event: those at its index of the epoch, from its first to its last, int64 [K].

    For any other event, its first step.
    """
    if event.kind != "periodic" or not event.period:
        return np.array([event.step], dtype=np.int64)
    row = int(np.searchsorted(run.step, event.step))
    index = _index(run)
    rows = _at_index(run, int(index[row])) if index is not None else np.arange(row, len(run), event.period)
    steps = run.step[rows]
    return steps[(steps >= event.step) & (steps <= event.last_step)]


def heights(run: Run, rows: np.ndarray) -> np.ndarray:
    """The loss at these rows over the median of the 64 rows before each; nan where it has no meaning, [K]."""
    out = np.full(len(rows), np.nan)
    for k, row in enumerate(rows):
        before = run.loss[max(0, row - MEDIAN_STEPS) : row]
        before = before[np.isfinite(before)]
        base = float(np.median(before)) if len(before) else 0.0
        if base > 0 and np.isfinite(run.loss[row]):
            out[k] = run.loss[row] / base
    return out


# --------------------------------------------------------------------------- how it is done


def _untested(period: int, n_cycles: int, reason: str) -> PeriodResult:
    return PeriodResult(
        period=period, phase=None, amplitude=0.0, p_value=1.0, n_cycles=n_cycles,
        minimum_detectable=float("inf"), reason=reason,
    )  # fmt: skip


def _index(run: Run) -> np.ndarray | None:
    """The position of each row in its epoch, [T]; None when it is not known."""
    if run.index is not None:
        return run.index
    return run.step % run.steps_per_epoch if run.steps_per_epoch else None


def _at_index(run: Run, phase: int) -> np.ndarray:
    index = _index(run)
    return np.flatnonzero(index == phase) if index is not None else np.zeros(0, dtype=np.int64)


def _cycles(run: Run, period: int, own: bool) -> np.ndarray:
    """Rows of each cycle, [n_cycles, period], -1 where a step is missing; cycles with over half missing are left out.

    The epochs of the record are used for the run's own period, the steps' numbers for any other.
    """
    if own and run.index is not None:
        starts = np.flatnonzero(np.diff(run.index, prepend=np.iinfo(np.int64).max) < 0)
        cycle = np.cumsum(np.isin(np.arange(len(run)), starts)) - 1
        if run.epoch is not None:
            cycle = np.unique(run.epoch, return_inverse=True)[1]
        phase = run.index
    else:
        cycle, phase = run.step // period, run.step % period
        cycle = np.unique(cycle, return_inverse=True)[1]
    if not len(run):
        return np.zeros((0, period), dtype=np.int64)
    table = np.full((int(cycle.max()) + 1, period), -1, dtype=np.int64)
    inside = (phase >= 0) & (phase < period)
    table[cycle[inside], phase[inside]] = np.flatnonzero(inside)
    return table[(table >= 0).mean(axis=1) > 0.5]


def _residuals(run: Run, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Residuals from a centred local median over one period, [T] each: linear and shrunk; logarithmic.

    A loss that is negative somewhere is read on its raw scale, in units of its own spread.
    """
    loss = np.asarray(run.loss, dtype=np.float64)
    finite = np.isfinite(loss)
    if not finite.any():
        return np.full(len(loss), np.nan), np.full(len(loss), np.nan)
    width = int(min(max(period, 9), 1025)) | 1
    filled = np.interp(np.arange(len(loss)), np.flatnonzero(finite), loss[finite])
    if (loss[finite] >= 0).all():
        tiny = max(float(np.median(filled)) * 1e-12, 1e-300)
        base = _running_median(np.log(np.maximum(filled, tiny)), width)
        y = np.log(np.maximum(filled, tiny)) - base
        x = np.expm1(np.minimum(y, 50.0))
    else:
        rest = filled - _running_median(filled, width)
        spread = float(np.median(np.abs(rest))) * 1.4826 or 1.0
        x = y = 0.1 * rest / spread
    if run.n_samples is not None and len(run):
        size = run.batch_size or int(np.bincount(run.n_samples).argmax())
        x = x * np.sqrt(np.minimum(1.0, run.n_samples / max(size, 1)))
    return np.where(finite, x, np.nan), np.where(finite, y, np.nan)


def _running_median(y: np.ndarray, width: int) -> np.ndarray:
    """Centred median over `width` values, the ends reflected."""
    width = min(width, len(y) - 1 + len(y) % 2)
    if width < 3:
        return np.full(len(y), float(np.median(y)))
    padded = np.pad(y, width // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    # A median over hundreds of values changes slowly: between some of them a straight line will do.
    at = np.unique(np.append(np.arange(0, len(y), max(1, width // 32)), len(y) - 1))
    found = [np.median(windows[part], axis=1) for part in np.split(at, range(512, len(at), 512))]
    return np.interp(np.arange(len(y)), at, np.concatenate(found))


def _statistics(spikes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each phase the lower and the upper of mean and median over the cycles.

    A pattern moves both. Chance moves one: a single high cycle the mean, the skew of small batches the median.
    """
    means, medians = spikes.mean(axis=0), np.median(spikes, axis=0)
    return np.minimum(means, medians), np.maximum(means, medians)


def _is_pointed(profile: np.ndarray, phase: int, *, dips: bool) -> bool:
    """Whether the profile breaks off at the phase, over an eighth of the period, rather than sloping down to it.

    A spike may have a tail, where its gradient did damage; a dip has none. The foot of a sawtooth has one side.
    """
    size = len(profile)
    reach = size // 8 + 2
    if size < 2 * reach + 2:
        return True
    height = abs(profile[phase] - np.median(profile))
    sides = [np.median(np.roll(profile, -(phase + side * reach))[[-1, 0, 1]]) for side in (-1, 1)]
    needed = sides if dips else sides[:1]
    return all(abs(profile[phase] - level) >= POINTED * height for level in needed)


def _trimmed(run: Run, event: Event, x: np.ndarray, peak: int, near: set[int]) -> Event:
    """An episode that began with an occurrence of the pattern, cut down to what rises around its own peak."""
    first = last = peak
    while first - 1 not in near and run.step[first - 1] >= event.step and abs(x[first - 1]) > 0.3:
        first -= 1
    end = int(np.searchsorted(run.step, event.last_step))
    while last < end and last + 1 not in near and abs(x[last + 1]) > 0.3:
        last += 1
    return replace(event, step=int(run.step[first]), last_step=int(run.step[last]))


def _first_step(run: Run, found: Wave) -> int:
    """The first step of the first cycle that a wave was seen in."""
    assert found.folded is not None
    cycle, phase = places(run, run.step, found.period)
    rows = np.flatnonzero(phase >= 0)
    first = np.unique(cycle[rows])[found.folded.first]
    row = rows[np.argmax(cycle[rows] == first)]
    return int(run.step[row]) - round(float(phase[row]) * found.period)


def _factor(found: Wave) -> float | None:
    """Peak over trough; None without a folded series, or where it has no logarithm."""
    if found.folded is None or not found.folded.logarithmic:
        return None
    return float(np.exp(found.amplitude))


def _state(run: Run, rows: np.ndarray) -> float | None:
    """Median height of the probe right after the occurrences, over its median in the 64 steps before each."""
    probe = run.signals.get("probe")
    if probe is None:
        return None
    out = []
    for step in run.step[rows]:
        first, here, last = np.searchsorted(probe.step, [step - MEDIAN_STEPS, step, step + 6])
        before, after = probe.value[first:here], probe.value[here:last]
        if len(before) and len(after) and np.isfinite([*before, *after]).all() and np.median(before) > 0:
            out.append(float(after.max() / np.median(before)))
    return median(out) if len(out) >= MIN_CYCLES else None
