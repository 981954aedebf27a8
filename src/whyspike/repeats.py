"""Spikes or dips that sit at one place of every cycle of a period.

The loss is laid out as one row per cycle and compared with surrogates in which every cycle is rotated on its own. A
rotated cycle keeps its values, and but for one cut their order, and loses only its phase, so that no table of F or
chi-squared is needed; those cry wolf on 46 to 89 % of autocorrelated series (`segment circular shift`, after
Theiler et al. 1992). The runs here have the period for their epoch (`folding.as_own`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from whyspike.detect import MEDIAN_STEPS, MERGE_STEPS, detect
from whyspike.types import Event, Run

ENOUGH = 10  # surrogates as high as the observed value end the search (Besag & Clifford 1991)
TURNED = 32  # more cycles than that are turned in groups of neighbours
MIN_AMPLITUDE = 0.1  # nats; a spike that repeats with less is significant in a long run, and of no interest
POINTED = 0.7  # of a spike's height is gone an eighth of the period before it; of a sawtooth's, about a third
HABIT = 0.7  # of the cycles; fewer are a few high epochs
LEAST = 4  # occurrences


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """What stands out most at one place of the cycle."""

    index: int  # in the cycle, in steps
    amplitude: float  # nats: mean over the cycles of log loss minus its local median
    p_value: float
    n_cycles: int
    pointed: bool  # it breaks off before the place, and does not slope up to it
    minimum_detectable: float  # nats: a spike of this mean height would have been found
    n_null: int  # surrogates that were drawn


def repeat(run: Run, n_null: int, seed: int) -> Repeat | str:
    """Test the run's epoch for a place that is high or low in every cycle; a sentence where no test can be made.

    The highest and the lowest place share one set of surrogates, and p is not corrected for having looked twice.
    A residual is the loss over its local median, minus 1, shrunk by sqrt(n / batch_size) for smaller batches: the mean
    of so many more noisy values, without the bias that a logarithm would give them.
    """
    table, stride = _cycles(run)
    n_cycles, period = table.shape
    if n_cycles < LEAST:
        return f"the run has {n_cycles} cycles of {run.steps_per_epoch} steps; at least {LEAST} are needed"
    x, y = _residuals(run, period)
    # A step that is missing or not finite counts as ordinary.
    usable = (table >= 0) & np.isfinite(x[table])
    if usable.mean() < 0.5:
        return "over half of the losses in the cycles are not finite"
    spikes, logs = np.where(usable, x[table], 0.0), np.where(usable, y[table], 0.0)
    firsts = np.arange(0, n_cycles, -(-n_cycles // TURNED))  # more cycles are averaged with neighbours, turned together
    grouped = np.add.reduceat(spikes, firsts, axis=0) / np.diff(np.append(firsts, n_cycles))[:, None]
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
    dips = p_dip < p_spike or (p_dip == p_spike and -upper.min() > lower.max())
    at = int(upper.argmin() if dips else lower.argmax())
    return Repeat(
        index=at * stride + int(np.median(run_index(run)[table[table >= 0]] % stride)),
        amplitude=float(logs[usable[:, at], at].mean()) if usable[:, at].any() else 0.0,
        p_value=float(min(p_spike, p_dip)),
        n_cycles=n_cycles,
        pointed=_is_pointed(logs.mean(axis=0), at, dips=dips),
        minimum_detectable=float(np.log1p(max(low for low, _ in null))),
        n_null=len(null),
    )


def merge(run: Run, events: Sequence[Event], found: Repeat) -> list[Event] | None:
    """The events with those of the pattern merged into one; None when the pattern is too low, or no habit."""
    assert run.steps_per_epoch
    rows = np.flatnonzero(run_index(run) == found.index)
    x, _ = _residuals(run, run.steps_per_epoch)
    height = np.log(np.maximum(heights(run, rows), 1e-300))
    seen = np.isfinite(height)
    if seen.sum() < LEAST or abs(np.median(height[seen])) < MIN_AMPLITUDE or abs(found.amplitude) < MIN_AMPLITUDE:
        return None
    sign = 1.0 if found.amplitude > 0 else -1.0
    if sign * np.median(height[seen]) <= 0 or np.mean(sign * height[seen] > 0) < HABIT:
        return None
    # An event belongs to the pattern when its highest step is an occurrence, or follows one within five steps.
    near = {int(r) + k for r in rows for k in range(6)}
    rest: list[Event] = []
    levels = [e for e in events if e.kind in ("level-shift", "divergence")]
    # Spikes nearer than MERGE_STEPS are one episode, and a long one is taken for a new level.
    made_of_them = _gone_without(run, levels, near) if levels else []
    for event in events:
        if event in made_of_them:
            continue
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
        period=run.steps_per_epoch,
        reported=float(np.exp(np.median(height[seen]))),
        state=_state(run, rows),
    )
    return [*rest, pattern]


def _gone_without(run: Run, events: Sequence[Event], near: set[int]) -> list[Event]:
    """The events that are not found when the loss is drawn straight over these rows."""
    rows = np.array(sorted(r for r in near if r < len(run)), dtype=np.int64)
    others = np.setdiff1d(np.arange(len(run)), rows)
    if len(others) < len(run) // 3:
        return []
    loss = run.loss.copy()
    loss[rows] = np.interp(rows, others, run.loss[others])
    left = [(e.step - MERGE_STEPS, e.last_step + MERGE_STEPS) for e in detect(replace(run, loss=loss))]
    return [e for e in events if not any(first <= e.last_step and e.step <= last for first, last in left)]


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


def run_index(run: Run) -> np.ndarray:
    """The position of each row in its epoch, [T]; -1 when it is not known."""
    if run.index is not None:
        return run.index
    return run.step % run.steps_per_epoch if run.steps_per_epoch else np.full(len(run), -1)


# --------------------------------------------------------------------------- how it is done


def _cycles(run: Run) -> tuple[np.ndarray, int]:
    """Rows of each cycle, [n_cycles, period / stride], -1 where a step is missing, and the steps between two rows.

    Cycles with over half missing are left out.
    """
    period, index = run.steps_per_epoch or 1, run_index(run)
    if not len(run):
        return np.zeros((0, period), dtype=np.int64), 1
    if run.epoch is not None:
        cycle = np.unique(run.epoch, return_inverse=True)[1]
    else:
        cycle = np.cumsum(np.diff(index, prepend=np.iinfo(np.int64).max) < 0) - 1
    stride = int(np.gcd.reduce(np.diff(run.step))) if len(run) > 1 else 1
    stride = stride if stride and period % stride == 0 else 1
    table = np.full((int(cycle.max()) + 1, period // stride), -1, dtype=np.int64)
    inside = (index >= 0) & (index < period)
    table[cycle[inside], index[inside] // stride] = np.flatnonzero(inside)
    return table[(table >= 0).mean(axis=1) > 0.5], stride


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
    return median(out) if len(out) >= LEAST else None
