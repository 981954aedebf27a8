"""Where the epochs of a log begin, from its epoch column: a fraction, a whole number, or nothing that is linear.

Every row says something about the length S of an epoch: a fraction e, rounded to d decimals, that s / S lies within
half a digit of e; a whole number e that S lies between s / (e + 1) and s / e. Where all rows agree on a range, S is in
it. Where they do not (streamed data, an epoch counter that starts again after a resume) the epochs begin where the
column says so, each with its own length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MOST_DECIMALS = 9  # beyond them a column is taken for exact


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The place of each logged step in its epoch."""

    epoch: np.ndarray  # int64 [T], from 0
    index: np.ndarray  # int64 [T], updates since the epoch began, from 0
    length: float  # updates in an epoch: exact, or the median where they differ
    exact: bool  # whether the boundaries are known to the step; else to the spacing of the log
    said: str  # where it was read from


def of_length(done: np.ndarray, length: float, said: str) -> Epochs:
    """Epochs of one known length. `done` counts the updates before each row's own, from 0, int64 [T].

    An epoch of 406.3 updates ends inside an update, which then belongs to the epoch that it began in.
    """
    epoch = np.floor(done / length + 1e-9).astype(np.int64)
    starts = np.ceil(epoch * length - 1e-6).astype(np.int64)
    return Epochs(epoch=epoch, index=done - starts, length=length, exact=True, said=said)


def of_column(
    done: np.ndarray,
    epoch: np.ndarray,
    *,
    where: np.ndarray | None = None,
    total: tuple[float, float] | None = None,
    name: str = "epoch",
) -> Epochs | None:
    """The epochs that a column says.

    Args:
        done: updates before the one of each row, from 0, int64 [R]; every row that has an epoch.
        epoch: the column, float64 [R].
        where: `done` of the rows that hold a loss; all when not given.
        total: (updates, epochs) of the whole run, not rounded, where the log says so.

    Returns:
        None where fewer than one epoch can be told.
    """
    at = done if where is None else where
    known = np.isfinite(epoch) & (epoch >= 0)
    done, epoch = done[known], epoch[known]
    if len(done) < 2 or epoch.max() == epoch.min():
        return None
    whole = bool(np.all(epoch == np.floor(epoch)))
    # Counted from 0 or from 1; a fraction may count the row's own update or not.
    ways = [(o, 0) for o in (0, 1)] if whole else [(o, s) for o in (0, 1) for s in (1, 0)]
    for origin, own in ways:
        if epoch.min() < origin:
            continue
        low, high = (_of_whole if whole else _of_fraction)(done + own, epoch - origin)
        if low > high * (1 + 1e-9):
            continue
        length, spread = _inside(low, high, whole), (high - low) / low if np.isfinite(high) else 1.0
        if total is not None and total[1] > 0 and low * 0.99 <= total[0] / total[1] <= high * 1.01:
            length, spread = total[0] / total[1], 0.0
        if spread < 0.5:
            found = of_length(at, length, f"column {name!r}")
            return replace(found, exact=bool(spread * epoch.max() * length < 2))
    return _uneven(done, epoch, at, name)


def _of_whole(done: np.ndarray, epoch: np.ndarray) -> tuple[float, float]:
    """The range of S in which floor(done / S) is the column; lower above upper where there is none."""
    low = float(np.max((done + 1e-9) / (epoch + 1)))
    later = epoch > 0
    return low, float(np.min(done[later] / epoch[later])) if later.any() else np.inf


def _of_fraction(done: np.ndarray, epoch: np.ndarray) -> tuple[float, float]:
    """The range of S in which done / S rounds to the column."""
    half = 0.5 * 10.0 ** -_decimals(epoch)
    low = float(np.max(done / (epoch + half)))
    later = epoch > 1.01 * half
    return low, float(np.min(done[later] / (epoch[later] - half))) if later.any() else np.inf


def _decimals(values: np.ndarray) -> int:
    for decimals in range(MOST_DECIMALS):
        if np.all(np.abs(values - np.round(values, decimals)) < 1e-9):
            return decimals
    return MOST_DECIMALS


def _inside(low: float, high: float, whole: bool) -> float:
    """A length in a range. The smallest whole number in it where the column is whole.

    Lightning and others write a validation row at the last step of an epoch, so that the lower end is the sharper one.
    """
    first = float(np.ceil(low - 1e-9))
    if whole and first <= high + 1e-9:
        return first
    return 0.5 * (low + high) if np.isfinite(high) else low


def _uneven(done: np.ndarray, epoch: np.ndarray, at: np.ndarray, name: str) -> Epochs | None:
    """Epochs that begin wherever the whole part of the column changes, up or (a counter that starts again) down."""
    order = np.argsort(done, kind="stable")
    done, number = done[order], np.floor(epoch[order] + 1e-9)
    starts = done[np.flatnonzero(np.diff(number) != 0) + 1]
    if not len(starts):
        return None
    edges = np.concatenate([[0], starts])
    place = np.maximum(np.searchsorted(edges, at, side="right") - 1, 0)
    full = np.diff(edges)
    length = float(np.median(full)) if len(full) else float(edges[-1])
    return Epochs(
        epoch=place.astype(np.int64), index=(at - edges[place]).astype(np.int64), length=length, exact=False,
        said=f"column {name!r}, which is not linear in the step",
    )  # fmt: skip
