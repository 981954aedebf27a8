"""The same data again: a lag at which the noise of the loss repeats itself.

The noise of a training loss is mostly the luck of the draw: which samples a batch holds. Where the same batches come
again in the same order, the noise comes again, at a lag of exactly one pass. A log knows the lag without knowing the
epoch: all lags are looked at, by a Fourier transform, and the highest correlation is compared with the highest of
shuffled residuals (a maximum statistic, so that looking at thousands of lags costs nothing).

Before that the residuals are whitened (an autoregression of order 8), because neighbouring residuals that are alike
make chance correlations larger, and turned into normal scores, so that a few large losses do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.points import spacing
from whyspike.types import Run

WINDOW = 65  # points of the running median that residuals are taken from: the detector's 64, centred
ORDER = 8  # of the autoregression
LEAST_LAG = 16  # points; a shorter pass is a period like any other
LEAST_PAIRS = 32  # points of the overlap
LEAST = 0.3  # of the correlation: the share of the noise that the data make (docs/benchmarks/curves.md)
ALPHA = 0.01
DRAWS = 199  # shuffles, so that p is never below 1 / 200; beyond LONG points half as many
LONG = 30_000
BLOCKS = 8  # stretches of the overlap that are looked at one by one
ABOUT = 0.05  # of an epoch
BELOW = 2.5  # standard errors below half of the whole's correlation: this stretch does not repeat
TOP = 0.1  # of the positions of a pass are left out, the strongest: a pattern at a few places is another cause
LEAST_WITHOUT = 0.2  # of the correlation of the others


@dataclass(frozen=True, kw_only=True)
class Echo:
    """The lag at which the residuals of a loss repeat themselves."""

    lag: int  # steps
    correlation: float  # of the residuals at this lag
    by_chance: float  # the correlation that shuffled residuals reach at their best lag in 1 of 100 draws
    p_value: float
    n: int  # pairs of points
    whole: bool  # every stretch shows it: a pass, and not a part that came twice
    first: int  # step at which the second pass begins, or the first step of the part that comes again
    last: int
    height: float  # of the part that repeats, as a factor of the loss (one standard deviation)
    peak: tuple[int, int]  # first and last step of the place of the pass where the loss is highest every time
    peak_height: float  # of that place, as a factor over the loss around it


def find_echo(run: Run, *, seed: int = 0) -> Echo | None:
    """The lag at which the loss repeats itself, None where it does at no lag more than by chance.

    A run is needed that logs every k-th step; a log with irregular steps has no lags.
    """
    every, regular = spacing(run.step)
    if not regular or len(run) < 2 * (LEAST_LAG + LEAST_PAIRS):
        return None
    grid = (run.step - run.step[0]) // every
    size = int(grid[-1]) + 1
    if size > 2 * len(run):
        return None
    residual = residuals(run.loss)
    rest = np.zeros(size)
    known = np.zeros(size)
    rest[grid] = np.where(np.isfinite(residual), residual, 0.0)
    known[grid] = np.isfinite(residual)
    white = _scores(_whitened(_scores(rest, known)), known)
    score, pairs = _correlations(white, known)
    lag = int(np.argmax(score))
    if score[lag] <= 0 or pairs[lag] < LEAST_PAIRS:
        return None
    clipped = _winsorised(rest, known)
    r = _pearson(clipped, known, lag)
    if r < LEAST or score[lag] / np.sqrt(pairs[lag]) < LEAST / 2:
        return None
    highest = _chance(white, known, seed)
    p = float((1 + np.sum(highest >= score[lag])) / (1 + len(highest)))
    if p > ALPHA or _pearson(*_without_the_strongest(white, known, lag), lag) < LEAST_WITHOUT:
        return None
    shown, whole = _blocks(white, known, lag)
    held = np.flatnonzero(shown)
    edges = np.linspace(0, size - lag, BLOCKS + 1)
    start, end = (float(edges[held[0]]), float(edges[held[-1] + 1])) if len(held) else (0.0, float(size - lag))
    common = np.sqrt(max(r, 0.0)) * float(np.std(clipped[known > 0]))
    place, peak_height = _highest_place(rest, known, lag)
    at = run.step[0] + every * np.arange(place, size, lag)
    return Echo(
        lag=lag * every,
        correlation=r,
        by_chance=float(np.quantile(highest, 0.99) / np.sqrt(pairs[lag])),
        p_value=p,
        n=int(pairs[lag]),
        whole=whole and _is_pass(lag * every, run.steps_per_epoch),
        first=int(run.step[0]) + every * (lag + int(start)),
        last=int(run.step[0]) + every * (lag + int(end) - 1),
        height=float(np.exp(common)),
        peak=(int(at[0]), int(at[-1])),
        peak_height=float(np.exp(peak_height)),
    )


def residuals(loss: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Log loss minus its centred running median, in units of its own running scatter times the overall one; nan stays.

    A loss that is negative somewhere is read on its raw scale, in units of its own level's spread.
    """
    from scipy.ndimage import median_filter

    loss = np.asarray(loss, dtype=np.float64)
    finite = np.isfinite(loss)
    if finite.sum() < 8:
        return np.full(len(loss), np.nan)
    if (loss[finite] > 0).all():
        y = np.log(np.where(finite, loss, 1.0))
    else:
        spread = float(np.subtract(*np.quantile(loss[finite], [0.75, 0.25]))) or 1.0
        y = np.where(finite, loss, 0.0) / (10 * spread)
    y = np.interp(np.arange(len(y)), np.flatnonzero(finite), y[finite])
    width = min(window, max(3, len(y) // 4 * 2 - 1)) | 1
    rest = y - median_filter(y, width, mode="reflect")
    wide = min(8 * window + 1, max(3, len(y) // 2 * 2 - 1)) | 1
    scatter = median_filter(np.abs(rest), wide, mode="reflect")
    overall = float(np.median(np.abs(rest)))
    if overall > 0:
        rest = rest * overall / np.maximum(scatter, 0.1 * overall)
    return np.where(finite, rest, np.nan)


def _scores(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Normal scores of the known values; the others are 0."""
    from scipy.special import ndtri

    out = np.zeros(len(x))
    at = known > 0
    out[at] = ndtri((ranks(x[at]) - 0.5) / at.sum())
    return out


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values share the mean of theirs; as scipy.stats, whose import takes longer than a log."""
    order = np.argsort(x, kind="stable")
    starts = np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0)
    edges = np.append(starts, len(x))
    out = np.empty(len(x))
    out[order] = np.repeat(0.5 * (edges[:-1] + 1 + edges[1:]), np.diff(edges))
    return out


def _whitened(z: np.ndarray) -> np.ndarray:
    """The residuals of an autoregression (Yule and Walker)."""
    from scipy.linalg import solve_toeplitz

    order = min(ORDER, len(z) // 16)
    covariance = np.array([z[: len(z) - k] @ z[k:] for k in range(order + 1)]) / len(z)
    if order < 1 or covariance[0] <= 0:
        return z
    covariance[0] *= 1 + 1e-9
    weights = solve_toeplitz(covariance[:order], covariance[1:])
    out = z.copy()
    for k, weight in enumerate(weights, 1):
        out[k:] -= weight * z[:-k]
    return out


def _autocovariance(x: np.ndarray) -> np.ndarray:
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(2 * len(x), real=True)
    return np.asarray(irfft(np.abs(np.asarray(rfft(x, size))) ** 2, size))[: len(x)]


def _correlations(white: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every lag the standard score of the correlation, and how many pairs there are. Lags that are out are 0."""
    pairs = np.round(_autocovariance(known))
    score = _autocovariance(white) / np.sqrt(np.maximum(pairs, 1.0))
    score[:LEAST_LAG] = 0.0
    score[pairs < max(LEAST_PAIRS, 0.02 * len(white))] = 0.0
    return score, pairs


def _chance(white: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """The highest score over all lags, of shuffled residuals, [K]."""
    rng = np.random.default_rng(seed)
    at = np.flatnonzero(known)
    draws = DRAWS if len(white) <= LONG else DRAWS // 2
    highest = np.empty(draws)
    pairs = np.round(_autocovariance(known))
    out = (pairs < max(LEAST_PAIRS, 0.02 * len(white))) | (np.arange(len(white)) < LEAST_LAG)
    root = np.sqrt(np.maximum(pairs, 1.0))
    for k in range(draws):
        drawn = np.zeros(len(white))
        drawn[at] = rng.permutation(white[at])
        highest[k] = np.max(np.where(out, 0.0, _autocovariance(drawn) / root))
    return highest


def _winsorised(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values cut off at four times their own scatter."""
    scatter = 1.4826 * float(np.median(np.abs(x[known > 0]))) or 1.0
    return np.clip(x, -4 * scatter, 4 * scatter)


def _pearson(x: np.ndarray, known: np.ndarray, lag: int) -> float:
    """The correlation of a series with itself so many points later."""
    both = (known[:-lag] > 0) & (known[lag:] > 0)
    a, b = x[:-lag][both], x[lag:][both]
    if len(a) < LEAST_PAIRS or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _without_the_strongest(white: np.ndarray, known: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The series without the positions of the pass that stand out most."""
    position = np.arange(len(white)) % lag
    total = np.bincount(position, white * known, lag)
    count = np.maximum(np.bincount(position, known, lag), 1.0)
    strength = np.abs(total / count)
    strong = strength > np.quantile(strength, 1 - TOP)
    return white, known * ~strong[position]


def _highest_place(rest: np.ndarray, known: np.ndarray, lag: int) -> tuple[int, float]:
    """The position of the pass where the lowest of the residuals of all passes is highest, and their mean, nats."""
    passes = -(-len(rest) // lag)
    padded = np.full(passes * lag, np.nan)
    padded[: len(rest)] = np.where(known > 0, rest, np.nan)
    table = padded.reshape(passes, lag)
    several = np.isfinite(table).sum(axis=0) > 1
    lowest = np.where(several, np.min(np.where(np.isfinite(table), table, np.inf), axis=0), -np.inf)
    place = int(np.argmax(lowest))
    return place, float(np.nanmean(table[:, place]))


def _is_pass(lag: int, steps_per_epoch: int | None) -> bool:
    """Whether a lag is about a number of whole epochs, where their length is known, be it known a bit wrong."""
    if not steps_per_epoch:
        return True
    turns = lag / steps_per_epoch
    return round(turns) >= 1 and abs(turns - round(turns)) < ABOUT


def _blocks(white: np.ndarray, known: np.ndarray, lag: int) -> tuple[np.ndarray, bool]:
    """Whether each stretch of the overlap shows the correlation, [BLOCKS]; and whether none speaks against it."""
    both = (known[:-lag] > 0) & (known[lag:] > 0)
    a, b = white[:-lag], white[lag:]
    half = 0.5 * float(np.mean(a[both] * b[both]))
    shown, against = [], False
    for number, part in enumerate(np.array_split(np.arange(len(a)), BLOCKS)):
        held = part[both[part]]
        mean = float(np.mean(a[held] * b[held])) if len(held) else half
        shown.append(mean > half)
        # At the begin of a training the noise is that of the network's start, not that of the data.
        against |= bool(number) and mean + BELOW / max(len(held), 1) ** 0.5 < half
    return np.array(shown), not against
