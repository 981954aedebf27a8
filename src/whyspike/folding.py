"""A run folded over a period: one row per cycle, one column per stretch of it, without the run's own trend.

Which cycle a step belongs to, and where in it, comes from the record's epochs where they are known, else from the
steps' numbers. The trend is a straight line through the mean of each cycle, its slope the median rise between the
means of the cycles around it: exactly one period is averaged, so that a steadily falling loss leaves nothing behind,
while one that falls at every boundary leaves a sawtooth. The median keeps a single drop (of the learning rate) out of
the cycles beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from whyspike.types import Run, Series

SHORT = 0.5  # of the batch size: smaller batches are left out of the folded loss
WINSOR = 4.0  # robust standard deviations; a single spike must not carry a mean over a stretch of the epoch


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A series over the stretches of a period."""

    table: np.ndarray  # float64 [n_cycles, n_phases]: mean residual of each stretch; nan where nothing was measured
    logarithmic: bool  # residuals of the logarithm (nats), else in the series' own unit: a value was not positive
    first: int  # which cycle of the run is the first row: 0 unless incomplete ones were left out

    @property
    def profile(self) -> np.ndarray:
        """Median over the cycles, [n_phases]; nan for a stretch that was never measured."""
        return np.array([float(np.median(c[~np.isnan(c)])) if (~np.isnan(c)).any() else np.nan for c in self.table.T])

    @property
    def amplitude(self) -> float:
        """Peak to trough of the profile; 0 without one."""
        seen = self.profile[~np.isnan(self.profile)]
        return float(seen.max() - seen.min()) if len(seen) else 0.0


def fold(loss: np.ndarray, period: int, n_phases: int | None = None) -> np.ndarray:
    """Fold a series over a period: [n_cycles, n_phases], incomplete cycles left out.

    With fewer phases than steps in the period, neighbouring steps are averaged.

    Raises:
        ValueError: the period is below 1, or `n_phases` is above it.
    """
    if period < 1 or (n_phases is not None and not 1 <= n_phases <= period):
        raise ValueError(f"period = {period}, n_phases = {n_phases}; 1 <= n_phases <= period is needed")
    x = np.asarray(loss, dtype=np.float64)
    cycles = x[: len(x) // period * period].reshape(-1, period)
    if n_phases is None or n_phases == period:
        return cycles
    phase = np.arange(period) * n_phases // period
    with np.errstate(invalid="ignore"):
        return np.stack([np.nanmean(cycles[:, phase == k], axis=1) for k in range(n_phases)], axis=1)


def folded(run: Run, n_phases: int = 8, series: Series | None = None, *, period: int | None = None) -> Folded:
    """Fold the loss of a run, or another series of it, over its epoch, without the trend.

    Args:
        n_phases: stretches of the epoch: 4 for quarters, 8 for eighths.
        series: `run.signals[name]`; None takes the loss.
        period: in steps; None takes the run's own epoch.

    Raises:
        ValueError: no period is given and the run does not know its epoch.
    """
    return detrended(run, series, period=period).folded(n_phases)


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """A series without its trend, value by value, of the cycles that are whole."""

    cycle: np.ndarray  # int64 [K], from 0, increasing
    phase: np.ndarray  # float64 [K], in [0, 1)
    value: np.ndarray  # float64 [K], cut off at four robust standard deviations
    logarithmic: bool  # of the logarithm; False where a value was not positive
    first: int  # which cycle of the run is number 0

    @property
    def n_cycles(self) -> int:
        return int(self.cycle[-1]) + 1 if len(self.cycle) else 0

    def folded(self, n_phases: int) -> Folded:
        """The mean of each stretch of each cycle."""
        rows = self.n_cycles
        bins = self.cycle * n_phases + np.minimum((self.phase * n_phases).astype(np.int64), n_phases - 1)
        count = np.bincount(bins, minlength=rows * n_phases)
        total = np.bincount(bins, self.value, minlength=rows * n_phases)
        table = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(rows, n_phases)
        return Folded(table=table, logarithmic=self.logarithmic, first=self.first)


def detrended(run: Run, series: Series | None = None, *, period: int | None = None) -> Residuals:
    """The residuals of a series of the run, the loss unless another is given, from its trend over the cycles."""
    step = run.step if series is None else series.step
    raw = np.asarray(run.loss if series is None else series.value, dtype=np.float64)
    cycle, phase = places(run, step, period)
    good = np.isfinite(raw) & (phase >= 0)
    if series is None and run.n_samples is not None and run.batch_size:
        # The logarithm of a mean over few samples is lower by half its variance: no wave, but one in every epoch.
        good &= run.n_samples >= SHORT * run.batch_size
    cycle, phase, raw = cycle[good], phase[good], raw[good]
    logarithmic = bool(len(raw)) and bool((raw > 0).all())
    if not len(raw):
        return Residuals(cycle=cycle, phase=phase, value=raw, logarithmic=False, first=0)
    # The last cycle is whole when it reaches about as far as the others do.
    ends = np.zeros(int(cycle.max()) + 1)
    np.maximum.at(ends, cycle, phase)
    counts = np.bincount(cycle)
    half = counts > 0.5 * np.median(counts[counts > 0])
    whole = half & (ends > 0.75 * np.median(ends[half]))
    keep, number = whole[cycle], np.cumsum(whole) - 1
    cycle, phase, y = number[cycle[keep]], phase[keep], (np.log(raw) if logarithmic else raw)[keep]
    if len(y):
        y = _clipped(_without_trend(_clipped(y, cycle), cycle, phase), np.zeros_like(cycle))
    return Residuals(cycle=cycle, phase=phase, value=y, logarithmic=logarithmic, first=int(whole.argmax()))


def places(run: Run, step: np.ndarray, period: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cycle (from 0, increasing, int64 [K]) and phase (in [0, 1), -1 where it is not known, [K]) of some steps.

    Raises:
        ValueError: no period is given and the run does not know its epoch.
    """
    own = period is None or period == run.steps_per_epoch
    period = period or run.steps_per_epoch
    if not period:
        raise ValueError("the run knows no steps_per_epoch, and no period was given")
    step = np.asarray(step, dtype=np.int64)
    if own and run.index is not None and len(run):
        row = np.minimum(np.searchsorted(run.step, step), len(run) - 1)
        known = run.step[row] == step
        starts = (
            np.diff(run.index, prepend=run.index[0]) < 0 if run.epoch is None else np.diff(run.epoch, prepend=0) != 0
        )
        cycle, index = np.cumsum(starts)[row], run.index[row]
        return cycle.astype(np.int64), np.where(known & (index >= 0) & (index < period), index / period, -1.0)
    return step // period - int(step.min() // period if len(step) else 0), step % period / period


def as_own(run: Run, period: int, *, of_epoch: bool = False) -> Run:
    """The run with another period in place of its epoch, counted from step 0 or from each epoch's first step."""
    if period == run.steps_per_epoch:
        return run
    if not of_epoch or run.index is None:
        return replace(run, steps_per_epoch=period, epoch=run.step // period, index=run.step % period)
    cycle = np.cumsum(np.diff(run.index // period, prepend=-1) != 0) - 1
    return replace(run, steps_per_epoch=period, epoch=cycle, index=np.where(run.index < 0, -1, run.index % period))


def _clipped(y: np.ndarray, cycle: np.ndarray) -> np.ndarray:
    """The values, each cycle's cut off at four robust standard deviations from its median."""
    edges = np.flatnonzero(np.diff(cycle, prepend=-1, append=-1))
    lengths = np.diff(edges)
    if len(lengths) and (lengths == lengths[0]).all():
        table = y.reshape(len(lengths), -1)
        middle = np.median(table, axis=1, keepdims=True)
        reach = WINSOR * 1.4826 * np.median(np.abs(table - middle), axis=1, keepdims=True)
        return np.where(reach > 0, np.clip(table, middle - reach, middle + reach), table).ravel()
    parts = np.split(y, edges[1:-1])
    return np.concatenate([_clipped(part, np.zeros(len(part), np.int64)) for part in parts]) if len(y) else y


def _without_trend(y: np.ndarray, cycle: np.ndarray, phase: np.ndarray) -> np.ndarray:
    n = int(cycle.max()) + 1
    counts = np.bincount(cycle, minlength=n)
    means, centres = np.bincount(cycle, y, minlength=n) / counts, np.bincount(cycle, phase, minlength=n) / counts
    if n < 2:
        return y - means[cycle]
    rise = np.diff(means) / np.diff(np.arange(n) + centres)
    slope = np.empty(n)
    slope[0], slope[-1] = rise[0], rise[-1]
    # As many rises before a cycle as after it, so that a bent trend does not tilt it.
    for c in {1, n - 2} - {0, n - 1}:
        slope[c] = 0.5 * (rise[c - 1] + rise[c])
    if n > 4:
        slope[2:-2] = np.median(np.lib.stride_tricks.sliding_window_view(rise, 4), axis=1)
    return y - means[cycle] - slope[cycle] * (phase - centres[cycle])
