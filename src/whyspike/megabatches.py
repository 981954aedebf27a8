"""A wave whose period is a number of batches, with a phase of its own in every epoch: batches sorted by length.

Samplers that group by length sort inside mega-batches of 50 batches (Hugging Face's LengthGroupedSampler: 50, or a
quarter of the batches in an epoch where that is less), longest first, so that the loss goes through the same ramp every
50 steps. The losses of each epoch are folded over that period, and the variance between the phases is summed over the
epochs and compared with surrogates in which every cycle is rotated on its own (as in periods.py): no table of an F or
chi-squared is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.ownperiods import LENGTH_GROUPED
from whyspike.points import spacing
from whyspike.types import Run

LEAST_CYCLES = 6
LEAST_BINS = 4  # phases; fewer cannot tell a ramp from a zigzag
MOST_BINS = 10
PART = 8  # cycles of a part, where no epochs are known
PARTS = 1_000_000  # more cycles than an epoch has
DRAWS = 2999
ALPHA = 0.001  # a wave is looked for in every run, healthy ones included
LEAST_SHARE = 0.4  # of the variance of the residuals is the wave's; less is not seen (docs/benchmarks/curves.md)
LEAST_CORRELATION = 0.4  # of the residuals one period apart
LEAST_HEIGHT = 0.01  # nats, half of top to bottom; less cannot be seen in a plot


@dataclass(frozen=True, kw_only=True)
class Oscillation:
    """A wave with a named period."""

    period: int  # steps
    n_cycles: int
    n_epochs: int
    share: float  # of the variance of the residuals, beyond what chance gives the wave
    by_chance: float  # the share that rotated cycles reach in 1 of 100 draws
    p_value: float
    correlation: float  # of the residuals one period apart, inside an epoch
    height: float  # nats, half of top to bottom of the mean cycle, over the epochs
    first: int  # steps from the first cycle to the last
    last: int


def period_of(steps_per_epoch: int | None) -> int:
    """Batches in a mega-batch of Hugging Face's sampler."""
    return LENGTH_GROUPED if not steps_per_epoch else max(1, min(LENGTH_GROUPED, steps_per_epoch // 4))


def find_oscillation(run: Run, period: int | None = None, *, seed: int = 0) -> Oscillation | None:
    """The wave of a run with this period, None where chance would make one as high.

    Args:
        period: in steps; the mega-batch of Hugging Face's sampler when not given.
    """
    every, regular = spacing(run.step)
    period = period or period_of(run.steps_per_epoch)
    bins = min(MOST_BINS, period // every)
    if not regular or bins < LEAST_BINS or len(run) < LEAST_CYCLES * bins:
        return None
    residual, phase, cycle, epoch = _placed(run, period, every)
    table, part = _table(residual, phase, cycle, bins)
    if len(table) < LEAST_CYCLES:
        return None
    height, correlation = _height(table, part), _one_period_apart(residual, epoch, max(1, round(period / every)))
    table = _even(table, part)
    rng = np.random.default_rng(seed)
    between = _between(table, part)
    total = float(np.sum((table - table.mean()) ** 2)) or 1.0
    # What chance gives a wave only lowers its share.
    if height < LEAST_HEIGHT or correlation < LEAST_CORRELATION or between / total < LEAST_SHARE:
        return None
    draws = int(min(DRAWS, max(399, 2e7 // table.size)))
    null = np.empty(draws)
    for k in range(draws):
        turned = (np.arange(bins) + rng.integers(0, bins, (len(table), 1))) % bins
        null[k] = _between(np.take_along_axis(table, turned, 1), part)
    typical = float(null.mean()) / total
    found = Oscillation(
        period=period,
        n_cycles=len(table),
        n_epochs=len(np.unique(part)),
        share=(between / total - typical) / max(1 - typical, 1e-9),
        by_chance=(float(np.quantile(null, 0.99)) / total - typical) / max(1 - typical, 1e-9),
        p_value=float((1 + np.sum(null >= between - 1e-12)) / (1 + draws)),
        correlation=correlation,
        height=height,
        first=int(run.step[0]),
        last=int(run.step[-1]),
    )
    return None if found.p_value > ALPHA or found.share < LEAST_SHARE else found


def _placed(run: Run, period: int, every: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each row its residual from the mean over one period, its phase (0 to 1), its cycle and its epoch, [T] each.

    A value that is the mean of k steps belongs to their middle; one that spans two epochs belongs to neither.
    """
    averaged = any(n.id == "averaged-values" for n in run.notes)
    index = run.index if run.index is not None else run.step - run.step[0]
    epoch = run.epoch if run.epoch is not None else np.zeros(len(run), dtype=np.int64)
    middle = index - (0.5 * (every - 1) if averaged else 0.0)
    y = _logs(run.loss)
    width = max(3, round(period / every))
    residual = y - _moving_mean(y, width)
    spoilt = ~np.isfinite(residual) | (middle < 0)
    residual = np.where(spoilt, np.nan, residual)
    scatter = 1.4826 * float(np.nanmedian(np.abs(residual))) or 1.0
    turn = np.floor(np.maximum(middle, 0) / period).astype(np.int64)
    # Where no epochs are known, the phase may begin anew anywhere: a part is a few cycles.
    part = epoch if run.epoch is not None else turn // PART
    cycle = part * PARTS + turn % PARTS
    return np.clip(residual, -4 * scatter, 4 * scatter), np.maximum(middle, 0) / period % 1.0, cycle, epoch


def _logs(loss: np.ndarray) -> np.ndarray:
    finite = np.isfinite(loss)
    if not finite.any():
        return np.full(len(loss), np.nan)
    if (loss[finite] > 0).all():
        return np.where(finite, np.log(np.where(finite, loss, 1.0)), np.nan)
    spread = float(np.subtract(*np.quantile(loss[finite], [0.75, 0.25]))) or 1.0
    return np.where(finite, loss / (10 * spread), np.nan)


def _moving_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over about one period; an even width takes half of each end."""
    filled = (
        np.interp(np.arange(len(y)), np.flatnonzero(np.isfinite(y)), y[np.isfinite(y)]) if np.isfinite(y).any() else y
    )
    kernel = np.ones(width) if width % 2 else np.concatenate([[0.5], np.ones(width - 1), [0.5]])
    padded = np.pad(filled, len(kernel) // 2, mode="reflect") if len(filled) > len(kernel) else filled
    return np.convolve(padded, kernel / kernel.sum(), mode="valid" if len(filled) > len(kernel) else "same")


def _table(residual: np.ndarray, phase: np.ndarray, cycle: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean residual of each cycle at each phase, [n_cycles, bins], and the part of the run that each belongs to.

    Cycles that are not whole are left out, and so are parts of a single cycle.
    """
    known = np.isfinite(residual)
    names, number = np.unique(cycle[known], return_inverse=True)
    place = number * bins + np.minimum((phase[known] * bins).astype(np.int64), bins - 1)
    size = len(names) * bins
    total, count = np.bincount(place, residual[known], size), np.bincount(place, minlength=size)
    with np.errstate(invalid="ignore"):
        table = (total / count).reshape(-1, bins)
    whole = np.isfinite(table).all(axis=1)
    part = names[whole] // PARTS
    _, place_of, held = np.unique(part, return_inverse=True, return_counts=True)
    several = held[place_of] > 1
    return table[whole][several], part[several]


def _even(table: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The table in units of each part's own scatter: the relative noise of a loss grows while it falls."""
    squares, n = _means(table**2, part)
    scatter = np.sqrt(squares.mean(axis=1))
    return table / np.repeat(np.where(scatter > 0, scatter, 1.0), n)[:, None]


def _means(table: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean cycle of each part, and of how many cycles it is."""
    first = np.flatnonzero(np.diff(part, prepend=part[0] - 1) != 0)
    n = np.diff(np.append(first, len(part)))
    return np.add.reduceat(table, first, axis=0) / n[:, None], n


def _between(table: np.ndarray, part: np.ndarray) -> float:
    """The variance between the phases of each part's mean cycle, as a sum of squares over the parts."""
    means, n = _means(table, part)
    return float(np.sum(n[:, None] * (means - means.mean(axis=1, keepdims=True)) ** 2))


def _height(table: np.ndarray, part: np.ndarray) -> float:
    means, n = _means(table, part)
    return float(np.average(0.5 * (means.max(axis=1) - means.min(axis=1)), weights=n))


def _one_period_apart(residual: np.ndarray, epoch: np.ndarray, lag: int) -> float:
    a, b = residual[:-lag], residual[lag:]
    both = np.isfinite(a) & np.isfinite(b) & (epoch[:-lag] == epoch[lag:])
    if both.sum() < 8 or a[both].std() == 0 or b[both].std() == 0:
        return 0.0
    return float(np.corrcoef(a[both], b[both])[0, 1])
