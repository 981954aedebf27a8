"""What the epochs of a run have in common, and how much of it one epoch has: the size of a smooth periodic event.

The log loss is freed from its trend by a centred mean over exactly one epoch, which any pattern of that period leaves
alone, and averaged over the epochs. The epoch that is measured is left out: a pattern that was read from it would be
found in it again. Neighbouring phases are averaged as far as that predicts a left-out epoch better, so that a smooth
wave is not read from the noise of single steps and a single step is not smoothed away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from whyspike.types import Run

MIN_EPOCHS = 3  # complete ones, without the one that is measured
MOST_BINS = 64  # beyond it, every step by itself


@dataclass(frozen=True)
class Pattern:
    """The common shape of a run's epochs, in nats of log loss about its mean (raw loss over its size, if not positive).

    Args:
        shape: [S], one value for each step of the epoch; its mean is 0.
        epochs: how many were averaged.
    """

    shape: np.ndarray
    epochs: int

    @property
    def amplitude(self) -> float:
        """From the lowest to the highest phase, nats."""
        return float(self.shape.max() - self.shape.min())

    def share_in(
        self, values: Sequence[float] | np.ndarray, drift: float = 0.0, beside: Sequence[float] | np.ndarray = ()
    ) -> float:
        """How often the pattern is in one epoch: 1 as in the others, 0 not at all, below 0 upside down.

        The least-squares coefficient of the epoch's log loss on the pattern. An epoch of another length than the
        pattern is stretched.

        Args:
            values: the logged losses of the epoch; nan where a step was skipped.
            drift: by how many nats the log loss changed over the epoch apart from any pattern; taken off as a straight
                line, because a trend looks like a rise.
            beside: for each of the values what its batch costs by its samples alone. Its log is fitted beside the
                pattern (a control variate): the samples that chance put into one half of the epoch are no pattern.
        """
        y = logged(np.asarray(values, dtype=np.float64))
        phase = (np.arange(len(y)) + 0.5) / max(1, len(y))
        p = self.shape
        if len(y) != len(p):
            p = np.interp(phase, (np.arange(len(p)) + 0.5) / len(p), p)
        seen = np.isfinite(y)
        if not seen.any():
            return float("nan")
        y, p = (y - drift * phase)[seen], p[seen] - p[seen].mean()
        y = y - y.mean()
        if len(beside) == len(seen) and len(y) > 3:
            c = logged(np.asarray(beside, dtype=np.float64))[seen]
            c = c - c.mean()
            if np.isfinite(c).all() and c @ c > 0:
                y, p = y - c * (y @ c) / (c @ c), p - c * (p @ c) / (c @ c)
        size = float(p @ p)
        return float(y @ p) / size if size > 0 else 0.0

    def amplitude_in(
        self, values: Sequence[float] | np.ndarray, drift: float = 0.0, beside: Sequence[float] | np.ndarray = ()
    ) -> float:
        """The amplitude of the pattern in one epoch, nats: its share times the amplitude."""
        return self.share_in(values, drift, beside) * self.amplitude


def logged(loss: np.ndarray) -> np.ndarray:
    """Log loss; where a loss is not positive, the loss over its median size."""
    finite = loss[np.isfinite(loss)]
    if len(finite) and (finite > 0).all():
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.isfinite(loss), np.log(loss), np.nan)
    size = float(np.median(np.abs(finite))) if len(finite) else 1.0
    return np.where(np.isfinite(loss), loss / (size or 1.0), np.nan)


def cycles(run: Run, values: np.ndarray | None = None, *, trend: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A series by epoch and step: ([E, S], numbers of the epochs [E]).

    nan where a step is missing or not finite and, without the trend, in the first and last half epoch, where there is
    none to take off. Empty where the run has no epochs.

    Args:
        values: [T], one for each row of the run; its log loss when not given.
        trend: leave the trend in.
    """
    period = run.steps_per_epoch or 0
    if period < 2 or run.epoch is None or run.index is None or len(run) < 2 * period:
        return np.zeros((0, max(period, 0))), np.zeros(0, dtype=np.int64)
    y = logged(run.loss) if values is None else values
    rest = y if trend else y - _centred_mean(y, period)
    inside = (run.index >= 0) & (run.index < period)
    names = np.unique(run.epoch[inside])
    table = np.full((len(names), period), np.nan)
    table[np.searchsorted(names, run.epoch[inside]), run.index[inside]] = rest[inside]
    return table, names


def pattern(
    run: Run, *, without: Collection[int] = (), epochs: Collection[int] | None = None, trend: bool = False
) -> Pattern | None:
    """The common pattern of the run's epochs; None where fewer than three complete ones are left.

    Args:
        without: epochs that are left out, by number.
        epochs: those that may be used; all but the first, where the loss falls most, when not given.
        trend: leave the trend in.
    """
    table, names = cycles(run, trend=trend)
    chosen = np.isin(names, list(epochs)) if epochs is not None else names > names.min(initial=0)
    whole = np.isfinite(table).mean(axis=1) > 0.9 if table.size else np.zeros(0, dtype=bool)
    table = table[chosen & whole & ~np.isin(names, list(without))]
    if len(table) < MIN_EPOCHS:
        return None
    table = table - np.nanmean(table, axis=1, keepdims=True)
    period = table.shape[1]
    sizes = [m for m in (4, 8, 16, 32, MOST_BINS) if m < period] + [period]
    bins = min(sizes, key=lambda m: _left_out_error(table, m))
    shape = _smooth(table, bins)
    return Pattern(shape - shape.mean(), len(table))


def trend_over(run: Run, epoch: int) -> float:
    """By how much the log loss changes from one epoch to the next around an epoch, nats; nan where it is not known.

    The slope of a line through the means of that epoch and of up to two on either side.
    """
    if run.epoch is None:
        return float("nan")
    y = logged(run.loss)
    near = [k for k in range(epoch - 2, epoch + 3) if np.isfinite(y[run.epoch == k]).any()]
    if epoch not in near or len(near) < 3:
        return float("nan")
    means = [float(np.nanmean(y[run.epoch == k])) for k in near]
    return float(np.polyfit(near, means, 1)[0])


def quarters(run: Run, values: np.ndarray | None = None) -> np.ndarray | None:
    """What the four quarters of an epoch have in common, about their mean, [4].

    None without three whole epochs of four steps or more.

    Args:
        values: [T], one for each row of the run; its log loss when not given.
    """
    table, names = cycles(run, values)
    table = table[names > names.min(initial=0)]
    table = table[np.isfinite(table).mean(axis=1) > 0.9] if table.size else table
    if len(table) < MIN_EPOCHS or table.shape[1] < 4:
        return None
    found = np.array([np.nanmean(q) for q in np.array_split(table, 4, axis=1)])
    return found - found.mean()


def rises_inside(run: Run) -> bool:
    """Whether the log loss rises within the epochs, from the first quarter to the last, its trend left in.

    A staircase does not, nor does any loss that falls. The first three epochs, in which a network learns most, are left
    out where others remain.
    """
    table, names = cycles(run, trend=True)
    later = names >= names.min(initial=0) + 3
    table = table[later] if later.sum() >= MIN_EPOCHS else table
    table = table[np.isfinite(table).mean(axis=1) > 0.9] if table.size else table
    if len(table) < MIN_EPOCHS:
        return False
    first, *_, last = np.array_split(table, 4, axis=1)
    rise = np.nanmean(last, axis=1) - np.nanmean(first, axis=1)
    return bool(rise.mean() > 3 * rise.std(ddof=1) / len(rise) ** 0.5)


def _centred_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Mean over exactly `width` values around each, the two outer ones halved when that is even; nan at the ends."""
    weights = np.ones(width) if width % 2 else np.concatenate([[0.5], np.ones(width - 1), [0.5]])
    seen = np.isfinite(y)
    out = np.full(len(y), np.nan)
    if len(y) < len(weights):
        return out
    total = np.convolve(np.where(seen, y, 0.0), weights, mode="valid")
    count = np.convolve(seen.astype(float), weights, mode="valid")
    half = len(weights) // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        out[half : half + len(total)] = np.where(count >= width / 2, total / count, np.nan)
    return out


def _bins(period: int, m: int) -> np.ndarray:
    return np.arange(period) * m // period


def _smooth(table: np.ndarray, m: int) -> np.ndarray:
    """The mean of each of `m` stretches of the epoch over all epochs, at every step, [S]."""
    where = _bins(table.shape[1], m)
    seen = np.isfinite(table)
    total = np.bincount(where, np.where(seen, table, 0.0).sum(axis=0), m)
    count = np.bincount(where, seen.sum(axis=0).astype(float), m)
    return (total / np.maximum(count, 1.0))[where]


def _left_out_error(table: np.ndarray, m: int) -> float:
    """Mean squared error of predicting each epoch by the stretches of the others."""
    where = _bins(table.shape[1], m)
    seen = np.isfinite(table)
    filled = np.where(seen, table, 0.0)
    totals = np.stack([np.bincount(where, row, m) for row in filled])
    counts = np.stack([np.bincount(where, row, m) for row in seen.astype(float)])
    others = (totals.sum(axis=0) - totals) / np.maximum(counts.sum(axis=0) - counts, 1.0)
    return float((np.where(seen, table - others[:, where], 0.0) ** 2).sum() / seen.sum())
