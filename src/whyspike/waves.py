"""Whether a series follows a smooth wave over a period: a sawtooth, a staircase, a reset.

Each cycle's residuals become four harmonics. In a wave the cycles agree on their phase, so that the harmonics add up;
in noise each cycle has a phase of its own. The surrogates turn every cycle by an angle of its own: the same as rotating
its steps, at the cost of one multiplication. The statistic is the power of the summed harmonics, the analysis of
variance between phases (Schwarzenberg-Czerny 1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.folding import Folded, detrended
from whyspike.types import Run, Series

MIN_CYCLES = 4
HARMONICS = 4  # as many as eighths of a cycle can show
PHASES = 8
STRAIGHT = 0.9  # r squared; a spike with an exponential tail of 0.3 periods has .86
SURROGATES = 4999  # 2e-4 is the smallest p, a fifth of the line that events must pass
ENOUGH = 10  # surrogates as high as the observed value end the search (Besag & Clifford 1991)
TURNED = 512  # more cycles than that are turned in groups of neighbours


@dataclass(frozen=True, kw_only=True)
class Wave:
    """A series against a wave of one period."""

    period: int
    amplitude: float  # peak to trough over eighths of the period: nats of the log loss, or the series' own unit
    p_value: float  # 1.0 without a test
    n_cycles: int
    agreement: float  # share of the cycles whose own eighths go with those of the others
    minimum_detectable: float  # peak to trough of a sawtooth that would have had p <= .001 in half of such runs
    noise: float  # robust standard deviation of a single value around the trend
    folded: Folded | None = None
    reason: str | None = None  # why there was no test

    @property
    def is_slope(self) -> bool:
        """Whether the wave is one straight slope over the whole period: a sawtooth or a staircase, and no spike."""
        if self.folded is None or self.p_value > 0.01 or len(self.folded.profile) < 4:
            return False
        profile = self.folded.profile
        return bool(np.corrcoef(profile, np.arange(len(profile)))[0, 1] ** 2 > STRAIGHT) if profile.std() > 0 else False


def wave(run: Run, series: Series | None = None, *, period: int | None = None, seed: int = 0) -> Wave:
    """Test a series of a run, the loss unless another is given, for a wave over its epoch or another period.

    The first cycle is left out where five or more are there: a loss falls most in it, and not along a line.
    """
    length = period or run.steps_per_epoch or 0
    if length < 2:
        return _untested(length, 0, "no period of 2 steps or more is known")
    rest = detrended(run, series, period=period)
    cycle, phase, value, n = rest.cycle, rest.phase, rest.value, rest.n_cycles
    if n > MIN_CYCLES:
        later = cycle > 0
        cycle, phase, value, n = cycle[later] - 1, phase[later], value[later], n - 1
    if n < MIN_CYCLES:
        return _untested(length, n, f"the run has {n} whole cycles of {length} steps; at least {MIN_CYCLES} are needed")
    counts = np.bincount(cycle, minlength=n)
    values = int(np.median(counts))
    harmonics = min(HARMONICS, (values - 1) // 2)
    if harmonics < 1:
        return _untested(length, n, f"a cycle of {length} steps has {values} values; at least 3 are needed")
    group = cycle // -(-n // TURNED)
    parts = np.empty((harmonics, int(group[-1]) + 1), dtype=np.complex128)
    for k in range(harmonics):
        angle = 2 * np.pi * (k + 1) * phase
        parts[k] = np.bincount(group, value * np.cos(angle)) - 1j * np.bincount(group, value * np.sin(angle))
    p_value, least = _against_surrogates(parts, np.random.default_rng(seed))
    table = rest.folded(min(PHASES, values))
    shown = Folded(table=table.table[-n:], logarithmic=table.logarithmic, first=table.first + len(table.table) - n)
    # A sawtooth of height h has |harmonic k| = h / (2 pi k) per value.
    per_height = float((np.sum(counts) / (2 * np.pi * np.arange(1, harmonics + 1))) ** 2 @ np.ones(harmonics)) ** 0.5
    return Wave(
        period=length,
        amplitude=shown.amplitude,
        p_value=p_value,
        n_cycles=n,
        agreement=_agreement(shown.table),
        minimum_detectable=least / per_height,
        noise=float(1.4826 * np.median(np.abs(value - np.median(value)))),
        folded=shown,
    )


def _against_surrogates(parts: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Turn every cycle by an angle of its own, many times.

    Returns:
        p of the power of the summed harmonics, and the root of the power that only one surrogate in a thousand has.
    """
    harmonics, n = parts.shape
    observed = float((np.abs(parts.sum(axis=1)) ** 2).sum()) * (1 - 1e-12)
    null = np.zeros(0)
    while len(null) < SURROGATES and np.count_nonzero(null >= observed) < ENOUGH:
        turn = np.exp(2j * np.pi * rng.random((1000, n)))
        power, angle = np.zeros(1000), turn
        for k in range(harmonics):
            power += np.abs(angle @ parts[k]) ** 2
            angle = angle * turn
        null = np.append(null, power)[:SURROGATES]
    above = int(np.count_nonzero(null >= observed))
    # The tail beyond the draws: a gamma distribution of their mean and variance, by Wilson & Hilferty's cube root.
    mean, variance = float(null.mean()), float(null.var())
    if variance <= 0:
        return (1 + above) / (len(null) + 1), float(np.sqrt(mean))
    c = variance / (9 * mean**2)
    return (1 + above) / (len(null) + 1), float(np.sqrt(mean * (1 - c + 3.09 * np.sqrt(c)) ** 3))


def _agreement(table: np.ndarray) -> float:
    """Share of the cycles that go up and down with the mean of all the others."""
    seen = np.where(np.isnan(table), 0.0, table)
    others = seen.sum(axis=0) - seen
    return float(np.mean((seen * others).sum(axis=1) > 0))


def _untested(period: int, n_cycles: int, reason: str) -> Wave:
    return Wave(
        period=period, amplitude=0.0, p_value=1.0, n_cycles=n_cycles, agreement=0.0,
        minimum_detectable=float("inf"), noise=float("nan"), reason=reason,
    )  # fmt: skip
