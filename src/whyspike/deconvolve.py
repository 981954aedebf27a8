"""The losses of single steps, recovered from a plotted number that averages over them.

A running mean, a window's mean and a moving average are sums, so that neighbouring values give the loss between them
back. What is lost is precision: the rounding of the logged numbers grows with the number of losses in the mean, and
every recovered value comes with the largest error that the rounding can have made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TRUSTED = 0.5  # of a jump; a rounding error above it could make or hide the jump (causes.md B7)
MOST = 300  # epochs of a curve that are looked at
DIGITS = 8  # decimals beyond which a number was not rounded for reading
FLOAT32 = 2.0**-23  # relative distance of two float32


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """Losses of single steps, or means over the steps between two logged values."""

    loss: np.ndarray  # float64 [K]; nan where it cannot be had
    limit: np.ndarray  # float64 [K]: the rounding of the logged values moves the loss by no more than this

    def refused(self, jump: float) -> str | None:
        """Why a jump of this height cannot be judged by the recovered losses; None where it can."""
        known = self.limit[np.isfinite(self.limit)]
        worst = float(np.median(known)) if len(known) else float("inf")
        if worst <= TRUSTED * abs(jump):
            return None
        return (
            f"the logged values are rounded, which moves the recovered losses by up to {worst:.2g}; a jump of "
            f"{abs(jump):.2g} cannot be told from that. Log more decimals"
        )


def rounding(values: np.ndarray) -> float:
    """The largest error that the rounding of some logged numbers has made: half a unit of their last decimal.

    Numbers with more decimals than float32 holds were not rounded for reading: half a unit of float32.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if not len(x):
        return 0.0
    largest = float(np.abs(x).max())
    for stored in (2.0**-48, FLOAT32):  # as float64, or as float32
        for decimals in range(DIGITS + 1):
            half = 0.5 * 10.0**-decimals
            if half > 2 * stored * largest and np.abs(x - np.round(x, decimals)).max() <= stored * largest:
                return half
    return 0.5 * FLOAT32 * float(np.median(np.abs(x)))


def running_mean(means: np.ndarray, weight: np.ndarray, error: float | None = None) -> Recovered:
    """Undo a mean since the start of the epoch: L_s = (W_s M_s - W_{s-1} M_{s-1}) / (W_s - W_{s-1}).

    Args:
        means: M, as logged, [K].
        weight: W, the steps or samples in each mean, [K]. Where it does not grow, a new epoch has begun.
        error: of the rounding of `means`; measured when not given.
    """
    m, w = np.asarray(means, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    half = rounding(m) if error is None else error
    before_m, before_w = np.append(0.0, m[:-1]), np.append(0.0, w[:-1])
    starts = w <= before_w
    before_m, before_w = np.where(starts, 0.0, before_m), np.where(starts, 0.0, before_w)
    gained = w - before_w
    return Recovered(loss=(w * m - before_w * before_m) / gained, limit=(w + before_w) / gained * half)


def moving_window(means: np.ndarray, k: int, error: float | None = None) -> Recovered:
    """Undo a mean over the last k steps, logged at every step: L_t = L_{t-k} + k (M_t - M_{t-1}).

    The first k means are over the steps so far, as a deque that fills up gives them.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k = {k}; a window has 1 step or more")
    m = np.asarray(means, dtype=np.float64)
    half = rounding(m) if error is None else error
    filling = running_mean(m[:k], np.arange(1, min(k, len(m)) + 1), half)
    loss, limit = np.empty(len(m)), np.empty(len(m))
    loss[:k], limit[:k] = filling.loss, filling.limit
    for t in range(k, len(m)):
        loss[t] = loss[t - k] + k * (m[t] - m[t - 1])
        limit[t] = limit[t - k] + 2 * k * half
    return Recovered(loss=loss, limit=limit)


def moving_average(smoothed: np.ndarray, gamma: float, error: float | None = None) -> Recovered:
    """Undo an exponential moving average M_t = gamma M_{t-1} + (1 - gamma) L_t, logged at every step.

    The first value has no value before it, and stays unknown.

    Raises:
        ValueError: gamma is not in [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma = {gamma}; 0 <= gamma < 1 is needed")
    m = np.asarray(smoothed, dtype=np.float64)
    half = rounding(m) if error is None else error
    loss, limit = np.full(len(m), np.nan), np.full(len(m), np.nan)
    loss[1:] = (m[1:] - gamma * m[:-1]) / (1 - gamma)
    limit[1:] = (1 + gamma) / (1 - gamma) * half
    return Recovered(loss=loss, limit=limit)


def decay_of(smoothed: np.ndarray) -> float:
    """The gamma of an exponential moving average of a noisy loss, from the curve alone; nan where it is too short.

    The losses of neighbouring steps are as good as independent, so that M_t follows M_{t-1} with the factor gamma
    around a level that falls slowly: least squares in stretches of 1,024 values, each with a line of its own. The
    bias of such a fit, -(1 + 4 gamma) / n (Marriott & Pope 1954), is taken off.
    """
    m = np.asarray(smoothed, dtype=np.float64)
    m = m[np.isfinite(m)]
    if len(m) < 32:
        return float("nan")
    parts = np.array_split(m, -(-len(m) // 1024))
    now = np.concatenate([_straightened(part[1:]) for part in parts])
    before = np.concatenate([_straightened(part[:-1]) for part in parts])
    if not before.any():
        return float("nan")
    fitted = float((now * before).sum() / (before * before).sum())
    n = len(parts[0])
    return float(np.clip((fitted * n + 1) / (n - 4), 0.0, 0.9999)) if n > 8 else fitted


def _straightened(x: np.ndarray) -> np.ndarray:
    """The values without their mean and their slope."""
    t = np.arange(len(x)) - (len(x) - 1) / 2
    return x - x.mean() - t * ((t * x).sum() / max((t * t).sum(), 1e-300))


# --------------------------------------------------------------------------- a curve that could be a running mean


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Whether a curve becomes a plain loss when it is taken for a running mean that restarts every epoch."""

    slope: float  # of log |second difference| on log s within the epoch: -1 for a running mean, 0 for single losses
    interval: tuple[float, float]  # 95 %, bootstrap over epochs
    jump: float  # of the curve at the epoch's boundary: first tenth minus the last tenth before it, median over epochs
    recovered_jump: float  # the same of the recovered losses, less the tenth of an epoch by which they fall anyway
    spread: float  # standard error of recovered_jump
    limit: float  # of its rounding
    n_epochs: int


def closing(curve: np.ndarray, epoch: np.ndarray, weight: np.ndarray) -> Closing | None:
    """Take a curve for a running mean since the epoch's start. None with fewer than 3 epochs of 12 values.

    Args:
        curve: [K] as logged.
        epoch: [K] number of the epoch.
        weight: [K] steps (or samples) since the epoch's start, this one included.
    """
    half = rounding(curve)
    slopes, jumps, recovered, rows = [], [], [], []
    ends: float | None = None
    last_level = before = 0.0
    order = np.argsort(epoch, kind="stable")
    for rows_of in np.split(order, np.flatnonzero(np.diff(epoch[order])) + 1)[:MOST]:
        part = rows_of[np.isfinite(curve[rows_of])]
        m, w = curve[part], weight[part]
        if len(part) < 12:
            ends = None
            continue
        tenth = max(2, len(part) // 10)
        if ends is not None:
            jumps.append(float(m[:tenth].mean()) - last_level)
            recovered.append(float(m[tenth - 1]) - ends - tenth / len(part) * (float(m[-1]) - before))
        a, b = len(part) - tenth - 1, len(part) - 1
        ends = float((w[b] * m[b] - w[a] * m[a]) / (w[b] - w[a]))
        rows.append((w[b] + w[a]) / (w[b] - w[a]) * half + half)
        last_level, before = float(m[-tenth:].mean()), float(m[-1])
        bend = np.abs(np.diff(m, 2))
        slopes.append((np.log(w[1:-1]), bend))
    if len(jumps) < 2:
        return None
    # Where the increments are no larger than the rounding, they do not shrink any further.
    made = []
    for log_w, bend in slopes:
        good = bend > 4 * half
        if good.sum() >= 6:
            made.append((log_w[good], np.log(bend[good])))
    if len(made) < 3:
        return None
    rng = np.random.default_rng(0)
    picks = [np.arange(len(made)), *(rng.integers(0, len(made), len(made)) for _ in range(400))]
    covered, spread = (np.array(v) for v in zip(*(_products(*part) for part in made), strict=True))
    fits = [float(covered[pick].sum() / spread[pick].sum()) for pick in picks]  # each epoch with a level of its own
    low, high = np.quantile(fits[1:], [0.025, 0.975])
    return Closing(
        slope=fits[0],
        interval=(float(low), float(high)),
        jump=float(np.median(jumps)),
        recovered_jump=float(np.median(recovered)),
        spread=float(1.2533 * np.std(recovered, ddof=1) / np.sqrt(len(recovered))),  # of a median
        limit=float(np.median(rows)),
        n_epochs=len(rows),
    )


def _products(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The sums of xy and xx about the means."""
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum()), float((x * x).sum())
