"""The error rates and intervals that verdicts rest on, in one place.

Every p-value here is exact or counts its own draw, (1 + #) / (K + 1), so that it is uniform or conservative under
its null (Phipson & Smyth 2010). None comes from a table that assumes independent Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isnan, log, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

EXACT_UP_TO = 14  # sign flips of so many clusters are enumerated: 16,384
DRAWS = 100_000  # Monte-Carlo sign flips beyond


def _finite(values: ArrayLike, name: str, at_least: int = 1) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < at_least or not np.isfinite(x).all():
        given = f"{len(x)} values" if np.isfinite(x).all() else "nan or inf among them"
        raise ValueError(f"{name} has {given}; at least {at_least} finite values are needed")
    return x


def paired_permutation_p(
    a: ArrayLike, b: ArrayLike, *, clusters: Sequence[object] | None = None, seed: int = 0
) -> float:
    """Test whether `a` is larger than `b` in paired values: one-sided sign-flip test of the mean difference.

    Args:
        a, b: paired values, [K].
        clusters: label of each pair; pairs that share one (the same event) flip together. None: each pair alone.
        seed: of the Monte-Carlo draws, which are used for more than 14 clusters only.

    Returns:
        p in (0, 1]; never below 2**-clusters.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} values and b has {len(y)}; a paired test needs one b for each a")
    if clusters is not None and len(clusters) != len(x):
        raise ValueError(f"clusters has {len(clusters)} labels for {len(x)} pairs; one for each pair is needed")
    d = x - y
    if clusters is not None:
        groups: dict[object, float] = {}
        for label, value in zip(clusters, d.tolist(), strict=True):
            groups[label] = groups.get(label, 0.0) + value
        d = np.array(list(groups.values()))
    line = d.sum() - 1e-12 * np.abs(d).sum()  # equal sums in another order of adding
    if len(d) <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        return float(np.mean(signs @ d >= line))
    rng = np.random.default_rng(seed)
    at_least = 0
    for _ in range(10):
        signs = rng.integers(0, 2, (DRAWS // 10, len(d)), dtype=np.int8) * 2.0 - 1.0
        at_least += int(np.count_nonzero(signs @ d >= line))
    return (1 + at_least) / (DRAWS + 1)


def rank_p(value: float, placebo_draws: ArrayLike) -> float:
    """Rank one value among draws of a placebo: the share that is at least as large, its own draw counted."""
    draws = _finite(placebo_draws, "placebo_draws")
    if isnan(value):
        raise ValueError("value is nan; a number is needed")
    return (1 + int(np.count_nonzero(draws >= value))) / (len(draws) + 1)


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values for having made several tests (Holm 1979); the order of `ps` is kept."""
    adjusted = [1.0] * len(ps)
    highest = 0.0
    for rank, k in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[k]))
        adjusted[k] = highest
    return tuple(adjusted)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one sample (Efron 1979); the mean unless said otherwise."""
    x = _finite(values, "values")
    index = np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))
    found = x[index].mean(1) if statistic is None else np.array([statistic(x[i]) for i in index])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_removed(a: ArrayLike, b: ArrayLike) -> float:
    """The share of the mean of `a` (baseline) that is gone in `b`: 1 - mean(b) / mean(a)."""
    return 1.0 - float(_finite(b, "b").mean()) / float(_finite(a, "a").mean())


def ratio_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """Percentile interval of `share_removed`, by resampling pairs.

    Where a resample's mean of `a` is not positive the share has no meaning; those resamples count at both ends
    (-inf and inf), so that the interval is wide rather than wrong.

    Raises:
        ValueError: the lengths differ, a value is not finite, or the mean of `a` is not positive.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} values and b has {len(y)}; pairs are needed")
    if x.mean() <= 0:
        raise ValueError(f"the mean of a is {x.mean():.3g}; a share removed needs a baseline above zero")
    index = np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))
    top, base = y[index].mean(1), x[index].mean(1)
    good = base > 0
    shares = 1.0 - top[good] / base[good]
    bad = draws - len(shares)
    ends = np.sort(np.concatenate([np.full(bad, -inf), shares])), np.sort(np.concatenate([shares, np.full(bad, inf)]))
    k = int((1 - level) / 2 * draws)
    return float(ends[0][k]), float(ends[1][draws - 1 - k])


def wilson(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion k / n (Wilson 1927); (0, 1) when n is 0."""
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} of n = {n}; 0 <= k <= n is needed")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def poisson_upper(k: int, exposure: float, *, level: float = 0.95) -> float:
    """Exact one-sided upper bound of a rate after k counts in `exposure` (Garwood 1936); 3 / exposure for k = 0."""
    if k < 0 or exposure <= 0:
        raise ValueError(f"k = {k} in {exposure}; k >= 0 and a positive exposure are needed")

    def at_most_k(mean: float) -> float:
        term = total = exp(-mean)
        for i in range(1, k + 1):
            term *= mean / i
            total += term
        return total

    low, high = 0.0, k + 10.0 * sqrt(k + 1.0) + 10.0
    if high > 700:  # exp(-mean) would underflow: Wilson and Hilferty's cube root is within 1e-3 there
        z = NormalDist().inv_cdf(level)
        m = k + 1
        return m * (1 - 1 / (9 * m) + z / (3 * sqrt(m))) ** 3 / exposure
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most_k(middle) > 1 - level else (low, middle)
    return high / exposure


LIMIT = 1.645  # standard errors of the pool's tail shape: its upper 95 % limit. The error is that of its estimator


@dataclass(frozen=True, kw_only=True)
class BatchMeanNull:
    """How likely a mini-batch loss is under nothing but the luck of the draw."""

    p_value: float  # of this step alone
    p_any: float  # of at least one such step among `n_steps`, Bonferroni
    p_cautious: float  # of this step, with the tail of single losses as heavy as the pool allows: what refutes chance
    typical: float  # mean of the resampled batch means
    method: Literal["empirical", "tail"]
    valid: bool  # False: the pool is too small, or the tail fit misses its own draws
    reason: str | None = None


def batch_mean_null(
    per_sample_losses: ArrayLike,
    n: int,
    observed: float,
    n_steps: int = 1,
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> BatchMeanNull:
    """Test a mini-batch loss against means of n samples drawn from a pool: was it an unlucky batch?

    The pool is resampled with replacement `draws` times. A pool of m losses knows nothing of samples rarer than 1 / m,
    and in thousands of steps those make the highest batches: so its upper tenth is not drawn from the pool but from a
    generalised Pareto tail, whose shape is the moment estimate of Dekkers, Einmahl & de Haan (1989), not below 0.
    With at least 10 draws at or above `observed`, p is their share. Otherwise it is the larger of two extrapolations: a
    tail fitted to the largest 250 means (probability-weighted moments, Hosking & Wallis 1987; the method of Knijnenburg
    et al. 2009 for permutation tails), and that of a single sample that makes the mean by itself.

    Of the highest of 2,000 ordinary batches at most 7 % were called out of the ordinary at a nominal 5 %, whether the
    losses were exponential, lognormal, a power law or those of mislabelled samples; without the fitted tail of the
    pool, up to 62 % (`tests/test_stats.py`).

    A tail that is known from 51 losses may be heavier than it looks. `p_cautious` takes the upper 95 % limit of its
    shape (the estimator's variance is (1 + shape^2) / count, Dekkers et al.): chance is refuted with that one.

    Validity: the pool has at least 64 losses and 4 * n, and the tail fitted to the means predicts the quantile that 10
    draws exceed within 15 % of the tail's width. Where `valid` is False take `p_value` for an order of magnitude at
    best.

    Args:
        per_sample_losses: losses of single samples at the weights of that step, or detrended, [m].
        n: samples of the mini-batch.
        observed: its mean loss.
        n_steps: steps among which this one was picked.

    Raises:
        ValueError: fewer than 2 losses, n < 1 or n_steps < 1, or `observed` is not finite.
    """
    pool = np.sort(_finite(per_sample_losses, "per_sample_losses", 2))
    if n < 1 or n_steps < 1 or not np.isfinite(observed):
        given = f"n = {n}, n_steps = {n_steps}, observed = {observed}"
        raise ValueError(f"{given}; n and n_steps of 1 or more and a finite observed loss are needed")
    rng = np.random.default_rng(seed)
    tail = _PoolTail.of(pool)
    rows = max(1, min(draws, 4_000_000 // n))
    means = np.concatenate([tail.draw(pool, (min(rows, draws - at), n), rng).mean(1) for at in range(0, draws, rows)])
    means.sort()
    above = draws - int(np.searchsorted(means, observed, side="left"))
    reason = None
    if len(pool) < max(64, 4 * n):
        reason = f"the pool has {len(pool)} losses; at least {max(64, 4 * n)} are needed for batches of {n}"
    method: Literal["empirical", "tail"] = "empirical"
    p = cautious = (1 + above) / (draws + 1)
    if above < 10:
        k = min(250, draws // 20)
        line = float(means[-k - 1])
        excess = means[-k:] - line
        if excess.mean() <= 0:
            reason = reason or "the largest resampled means are all equal, so no tail can be fitted"
        else:
            method = "tail"
            shape, scale = _pareto_fit(excess)
            others = (n - 1) * float(np.median(means))
            anchor = tail.survival(n * float(means[-10]) - others)
            alone = 10 / draws * tail.survival(n * observed - others) / anchor if anchor > 0 else 0.0
            p = cautious = min(p, max(k / draws * _pareto_tail(observed - line, shape, scale), alone))
            wide = tail.with_shape(tail.shape + LIMIT * sqrt((1.0 + tail.shape**2) / max(tail.count, 1)))
            anchor = wide.survival(n * float(means[-10]) - others)
            if anchor > 0:
                alone = 10 / draws * wide.survival(n * observed - others) / anchor
                cautious = max(p, min((1 + above) / (draws + 1), alone))
            predicted = scale * (log(k / 10) if shape < 1e-9 else ((k / 10) ** shape - 1) / shape)
            if abs(predicted - excess[-10]) > 0.15 * excess[-1] and reason is None:
                reason = "the fitted tail does not follow the largest resampled means"
    return BatchMeanNull(
        p_value=p,
        p_any=min(1.0, p * n_steps),
        p_cautious=cautious,
        typical=float(means.mean()),
        method=method,
        valid=reason is None,
        reason=reason,
    )


@dataclass(frozen=True)
class _PoolTail:
    """The upper tenth of a pool of losses, as a generalised Pareto tail above `start`."""

    count: int  # losses of the pool that it stands for
    start: float
    shape: float
    scale: float

    @classmethod
    def of(cls, pool: np.ndarray) -> _PoolTail:
        """Fit it; `pool` is sorted."""
        count = min(max(8, len(pool) // 10), len(pool) - 1)
        start, top = float(pool[-count - 1]), pool[-count:]
        excess = top - start
        middle = float(np.median(excess))
        if middle <= 0:
            return cls(0, start, 0.0, 0.0)
        if start > 0:
            logs = np.log(top / start)
            first, second = float(logs.mean()), float((logs * logs).mean())
            spread = 1.0 - first * first / second
            shape = first + 1.0 - 0.5 / spread if spread > 1e-9 else 0.0
        else:  # no logarithm: some losses are negative
            shape = _pareto_fit(excess)[0]
        return cls(count, start, 0.0, middle / log(2.0)).with_shape(min(max(shape, 0.0), 2.0))

    def with_shape(self, shape: float) -> _PoolTail:
        """The tail of the same median with another shape."""
        middle = _pareto_median(self.shape, self.scale)
        return replace(self, shape=shape, scale=middle / _pareto_median(shape, 1.0))

    def draw(self, pool: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        index = rng.integers(0, len(pool), size)
        found = pool[index]
        if self.count:
            above = index >= len(pool) - self.count
            q = 1.0 - rng.random(int(above.sum()))
            excess = (q**-self.shape - 1.0) / self.shape if self.shape > 1e-6 else -np.log(q)
            found[above] = self.start + self.scale * excess
        return found

    def survival(self, loss: float) -> float:
        return _pareto_tail(loss - self.start, self.shape, self.scale) if self.count else 0.0


def _pareto_fit(excess: np.ndarray) -> tuple[float, float]:
    """Shape (0 to .95) and scale of a generalised Pareto distribution, by probability-weighted moments; sorted."""
    k, mean = len(excess), float(excess.mean())
    weights = 1.0 - (np.arange(k) + 0.65) / k
    moment = float(np.mean(weights * excess))
    shape = min(max(0.0, 2.0 - mean / (mean - 2 * moment)), 0.95) if mean > 2 * moment else 0.0
    return shape, mean * (1.0 - shape)


def _pareto_median(shape: float, scale: float) -> float:
    return scale * ((2.0**shape - 1.0) / shape if shape > 1e-6 else log(2.0))


def _pareto_tail(excess: float, shape: float, scale: float) -> float:
    """P(X > excess) of a generalised Pareto distribution with shape >= 0."""
    if excess <= 0:
        return 1.0
    if shape < 1e-9:
        return exp(-min(excess / scale, 745.0))
    return (1.0 + shape * excess / scale) ** (-1.0 / shape)
