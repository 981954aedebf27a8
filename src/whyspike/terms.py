"""Which logged numbers add up to the loss: the terms of a total, each with its weight.

The loss of every step is compared with sums of the numbers that were logged at every step, where one of them may be
multiplied by another (a weight that has a schedule). The sum must give the loss to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from whyspike.detect import MEDIAN_STEPS
from whyspike.signals import logged
from whyspike.types import Event, Run

MOST = 8  # logged numbers that are tried
LEAST = 64  # steps at which all of them were logged
FLOAT32 = 2e-6  # relative; a sum of float32 is off by a few units in the last place
SAME = 1e-6  # relative; a number that close to the loss is the loss


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a total."""

    name: str  # of the number that was logged
    weight: str | None  # of the number that it is multiplied by
    factor: float  # constant, 1 where the number was logged as it enters the sum
    value: np.ndarray  # [K] what it adds to the loss
    schedule: np.ndarray | None  # [K] the weight; None without one

    @property
    def words(self) -> str:
        said = self.name if self.weight is None else f"{self.weight} x {self.name}"
        return said if abs(self.factor - 1) < 1e-3 else f"{self.factor:.3g} x {said}"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of the loss at the steps at which all were logged."""

    step: np.ndarray  # int64 [K]
    terms: tuple[Term, ...]
    residual: float  # largest |loss - sum|
    tolerance: float

    @property
    def words(self) -> str:
        return " + ".join(t.words for t in self.terms)

    @property
    def total(self) -> np.ndarray:
        return np.sum([t.value for t in self.terms], axis=0)


def terms(run: Run) -> Terms | None:
    """Find the terms of the loss among the numbers that the user logged. None unless two or more add up to it."""
    found = {n: s for n, s in list(logged(run).items())[:MOST] if len(s.step) >= 0.5 * len(run)}
    if len(found) < 2:
        return None
    shared = run.step[np.isfinite(run.loss)]
    for series in found.values():
        shared = np.intersect1d(shared, series.step[np.isfinite(series.value)])
    if len(shared) < max(LEAST, len(run) // 2):
        return None
    loss = run.loss[np.searchsorted(run.step, shared)]
    scale = float(np.abs(loss).max())
    numbers = {n: s.value[np.searchsorted(s.step, shared)] for n, s in found.items()}
    numbers = {n: v for n, v in numbers.items() if np.abs(v - loss).max() > SAME * scale}
    for products in ((), *permutations(numbers, 2)):
        made = _sum(loss, numbers, products, scale)
        if made is not None:
            return Terms(step=shared, terms=made[0], residual=made[1], tolerance=FLOAT32 * scale)
    return None


def _sum(
    loss: np.ndarray, numbers: Mapping[str, np.ndarray], product: tuple[str, ...], scale: float
) -> tuple[tuple[Term, ...], float] | None:
    """The loss as a sum with constant factors, of all numbers, or with the product of two in place of them."""
    columns: list[tuple[str, str | None, np.ndarray]] = [(n, None, v) for n, v in numbers.items() if n not in product]
    if product:
        weight, name = product
        if weight > name:  # the other order is the same product
            return None
        # The weight is the one that takes few values, or repeats them.
        if len(np.unique(numbers[weight])) > len(np.unique(numbers[name])):
            weight, name = name, weight
        columns.append((name, weight, numbers[name] * numbers[weight]))
    if len(columns) < 2:
        return None
    table = np.stack([v for *_, v in columns], axis=1)
    size = np.abs(table).max(axis=0)
    usable = size > 0
    factors = np.zeros(len(columns))
    factors[usable] = np.linalg.lstsq(table[:, usable] / size[usable], loss, rcond=1e-9)[0] / size[usable]
    # What was logged as it enters the sum has the factor 1, to the last digit.
    near = np.abs(factors - 1) < 1e-3
    factors[near] = 1.0
    residual = float(np.abs(loss - table @ factors).max())
    if not residual <= FLOAT32 * scale:
        return None
    kept = [k for k in range(len(columns)) if abs(factors[k]) * size[k] > 10 * FLOAT32 * scale]
    if len(kept) < 2:
        return None
    made = tuple(
        Term(
            name=name,
            weight=weight,
            factor=float(factors[k]),
            value=factors[k] * value,
            schedule=None if weight is None else numbers[weight],
        )
        for k, (name, weight, value) in enumerate(columns)
        if k in kept
    )
    return made, residual


# --------------------------------------------------------------------------- which part of an event each makes


def parts_of(sum_: Terms, weighted: Term, event: Event) -> dict[str, float]:
    """The shares of an event: of the weight by itself ("weight"), of every term otherwise. Together they are 1.

    By itself the weight multiplies the term's mean: over each cycle of a wave, over the 64 steps before another event.
    """
    assert weighted.schedule is not None
    first, last = np.searchsorted(sum_.step, [event.step, event.last_step + 1])
    if first < 2 or last <= first:
        return {}
    raw = np.divide(weighted.value, weighted.schedule, out=np.zeros(len(sum_.step)), where=weighted.schedule != 0)
    seen = weighted.schedule != 0
    if event.is_wave and event.period:
        cycle, phase = (sum_.step - event.step) // event.period, (sum_.step - event.step) % event.period
        within = (cycle >= 0) & (sum_.step <= event.last_step)
        cycle, phase = cycle[within], phase[within] / event.period
        counts = np.bincount(cycle, seen[within])
        level = (np.bincount(cycle, raw[within]) / np.maximum(counts, 1))[cycle]
        rise = lambda x: _profile(x, cycle, phase)  # noqa: E731
    else:
        before = slice(max(0, first - MEDIAN_STEPS), first)
        total = sum_.total
        within = slice(None)
        at = first + int(np.abs(total[first:last] - total[before].mean()).argmax())
        level = raw[before][seen[before]].mean() if seen[before].any() else raw[at]
        rise = lambda x: np.array([x[at] - x[before].mean()])  # noqa: E731
    whole = rise(sum_.total[within])
    size = float(whole @ whole)
    if size <= 0:
        return {}

    def share(value: np.ndarray) -> float:
        return float(rise(value) @ whole) / size

    alone = weighted.schedule[within] * level
    made = {t.name: share(t.value[within] - (alone if t is weighted else 0.0)) for t in sum_.terms}
    return {"weight": share(alone), **made}


def _profile(value: np.ndarray, cycle: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The mean over the cycles of each eighth of the period, without the trend of the cycles' means."""
    counts = np.bincount(cycle)
    means = np.bincount(cycle, value) / counts
    rest = value - means[cycle] - np.gradient(means)[cycle] * (phase - 0.5)
    eighth = np.minimum((8 * phase).astype(int), 7)
    return np.bincount(eighth, rest, 8) / np.maximum(np.bincount(eighth, minlength=8), 1)
