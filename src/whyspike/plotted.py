"""What is this logged number: which transformation of the recorded losses gives it, to the last digit.

The record holds the true loss of every step. Each candidate (a running mean, a window's mean, a moving average, every
k-th loss, an epoch's mean with some weight and divisor) is computed from it at the steps where the number was logged.
It is the one that leaves nothing but rounding; the second best is named beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from whyspike.deconvolve import rounding
from whyspike.form import ordinal
from whyspike.signals import logged
from whyspike.types import Evidence, Run, Series

Form = Literal["loss", "running-mean", "mean-from-start", "window-mean", "moving-window", "moving-average"]
LEAST = 5  # logged values; fewer fit too many formulas
FLOAT32 = 2e-6  # relative; a sum of thousands of float32 losses is off by this much
APART = 10.0  # times the tolerance: how far the next formula must be for the number to be told from it
LONGEST = 1000  # steps of a moving window that are tried
BLOCK = 64  # steps of a moving average that are computed at once
MOST = 16  # signals of a run that are looked at

TREATMENTS = {
    "": "",
    "dropped": "the losses that are not finite left out",
    "zero": "0 in place of the losses that are not finite",
    "window": "the window's mean so far in place of the losses that are not finite",
    "last": "the last finite loss in place of those that are not",
}


@dataclass(frozen=True, kw_only=True)
class Plotted:
    """A logged number and the formula that gives it."""

    name: str  # of the signal
    form: Form
    every: int  # steps between two logged values, the median
    of_epoch: bool  # logged once an epoch
    n: int  # values compared
    residual: float  # largest |logged - recomputed|
    tolerance: float  # what rounding explains
    weighted: bool = False  # by the samples of each step
    window: int | None = None  # steps of a moving window
    gamma: float | None = None  # of a moving average
    divisor: str = ""  # "S + 1", …: in place of the number of steps
    treatment: str = ""  # a key of TREATMENTS: what was done with losses that are not finite
    shift: int = 0  # 1: the number was logged before rec.step() and belongs to the step after
    rival: str = ""  # the next best formula that gives other numbers, in words
    rival_residual: float = float("inf")

    @property
    def words(self) -> str:
        """What the number is."""
        return _words(self, self.every, self.of_epoch)

    @property
    def evidence(self) -> Evidence:
        """How surely it is this formula: nothing is left but rounding, and the next one is far off."""
        expected = f"at most {self.tolerance:.1g}, what rounding leaves"
        if self.rival:
            expected += f"; off by {self.rival_residual:.2g} if it were {self.rival}"
        return Evidence(
            statement=f"{self.name} beside {self.words}: largest difference",
            observed=f"{self.residual:.1g} over {self.n:,} values",
            expected=expected,
        )


@dataclass(frozen=True)
class _Candidate:
    form: Form
    value: np.ndarray  # [K], at the logged steps
    weighted: bool = False
    window: int | None = None
    gamma: float | None = None
    divisor: str = ""
    treatment: str = ""


def plotted(run: Run) -> Mapping[str, Plotted]:
    """The signals that the user logged and that are a formula of the recorded losses, by their name."""
    made = {}
    for name, series in list(logged(run).items())[:MOST]:
        found = identify(run, series, name)
        if found is not None:
            made[name] = found
    return made


def identify(run: Run, series: Series, name: str = "") -> Plotted | None:
    """Which formula of the recorded losses gives a logged number; None when none does.

    A formula is accepted when the largest difference is no more than the rounding of the logged values explains, and
    a constant or a curve without variation is none. The simplest of those that fit as well is taken.
    """
    finite = np.isfinite(series.value)
    if finite.sum() < LEAST or np.ptp(series.value[finite]) == 0 or len(run) < LEAST:
        return None
    every = int(np.median(np.diff(series.step))) if len(series.step) > 1 else 1
    of_epoch = every == run.steps_per_epoch
    best: tuple[_Candidate, int, float, float, int] | None = None
    second = ("", float("inf"))
    shown = not finite.all()  # what is not finite reaches the logged number: no logger has got rid of it
    for shift in (0, 1):
        rows = np.searchsorted(run.step, series.step + shift)
        inside = finite & (rows < len(run))
        inside[inside] = run.step[rows[inside]] == series.step[inside] + shift
        if shift or (len(inside) and series.step[0] == 0):
            inside[0] = False  # what was logged before the first step, and at it, cannot be told apart
        if inside.sum() < LEAST:
            continue
        rows, value = rows[inside], series.value[inside]
        scale = float(np.median(np.abs(value)))
        tolerance = 1.01 * rounding(value) + FLOAT32 * scale
        tried = [(c, _residual(value, c.value)) for c in _candidates(run, rows, value, every, shown=shown)]
        if not any(r <= tolerance for _, r in tried):
            tried += [(c, _residual(value, c.value)) for c in _averages(run.loss, rows, value)]
        fits = [(c, r) for c, r in tried if r <= tolerance]
        if not fits or (best is not None and fits[0][1] >= best[2]):
            continue
        candidate, residual = fits[0]
        rivals = [(c, r) for c, r in tried if r > tolerance]
        rival = min(rivals, key=lambda pair: pair[1], default=None)
        if rival is not None and rival[1] < APART * tolerance:
            continue  # another formula is nearly as good: the number does not vary enough to tell
        best = candidate, shift, residual, tolerance, len(value)
        second = (_words(rival[0], every, of_epoch), rival[1]) if rival is not None else ("", float("inf"))
    if best is None:
        return None
    candidate, shift, residual, tolerance, n = best
    return Plotted(
        name=name, form=candidate.form, every=every, of_epoch=of_epoch, n=n, residual=residual, tolerance=tolerance,
        weighted=candidate.weighted, window=candidate.window, gamma=candidate.gamma, divisor=candidate.divisor,
        treatment=candidate.treatment, shift=shift, rival=second[0], rival_residual=second[1],
    )  # fmt: skip


def _residual(value: np.ndarray, made: np.ndarray) -> float:
    gap = np.abs(value - made)
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")


# --------------------------------------------------------------------------- the formulas, the simplest first


def _candidates(run: Run, rows: np.ndarray, value: np.ndarray, every: int, *, shown: bool) -> Iterator[_Candidate]:
    loss = np.asarray(run.loss, dtype=np.float64)
    ones = np.ones(len(loss))
    samples = run.n_samples.astype(np.float64) if run.n_samples is not None else None
    weights = [(False, ones)]
    if samples is not None and (samples > 0).all() and np.ptp(samples) > 0:
        weights.append((True, samples))
    good = np.isfinite(loss)
    if good.all() or shown:  # where a span holds one that is not finite the logged number is not, and not compared
        treatments = [("", np.where(good, loss, 0.0), ones)]
    else:
        treatments = list(_treated(loss, rows))
    starts = _epoch_starts(run)[rows]
    since = np.append(0, rows[:-1] + 1)  # the step after the value before; the first value is left out there
    for treatment, made, counted in treatments:
        with np.errstate(invalid="ignore"):
            yield _Candidate("loss", np.where(counted > 0, made, np.nan)[rows], treatment=treatment)
            spans: tuple[tuple[Form, np.ndarray], ...]
            spans = (("running-mean", starts), ("mean-from-start", 0 * rows), ("window-mean", since))
            for weighted, weight in weights:
                w = weight * counted
                sums, total = np.append(0.0, np.cumsum(w * made)), np.append(0.0, np.cumsum(w))
                for form, first in spans:
                    top, bottom = sums[rows + 1] - sums[first], total[rows + 1] - total[first]
                    mean = top / np.where(bottom > 0, bottom, np.nan)
                    if form == "window-mean":
                        mean[0] = value[0]
                    yield _Candidate(form, mean, weighted, treatment=treatment)
                    if form == "running-mean":
                        yield from _other_divisors(run, top, bottom, weighted, rows - first + 1, treatment)
            if treatment in ("", "dropped"):
                yield from _moving(made, rows, value, treatment)


def _treated(loss: np.ndarray, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The ways in which loggers get rid of losses that are not finite: name, losses, and which steps are counted."""
    good = np.isfinite(loss)
    ones = np.ones(len(loss))
    filled = np.where(good, loss, 0.0)
    yield "dropped", filled, good.astype(np.float64)
    yield "zero", filled, ones
    # transformers' Trainer: a loss that is not finite is replaced by sum / (1 + steps) of the window so far.
    window = filled.copy()
    position, total = 0, 0.0
    ends = set(rows.tolist())
    for t in range(len(loss)):
        window[t] = loss[t] if good[t] else total / (1 + position)
        total, position = total + window[t], position + 1
        if t in ends:
            position, total = 0, 0.0
    yield "window", window, ones
    last = np.maximum.accumulate(np.where(good, np.arange(len(loss)), 0))
    yield "last", filled[last], ones


def _other_divisors(
    run: Run, top: np.ndarray, bottom: np.ndarray, weighted: bool, counts: np.ndarray, treatment: str
) -> Iterator[_Candidate]:
    """Sums of an epoch over a count that is not theirs."""
    size = run.batch_size
    with np.errstate(divide="ignore"):
        if weighted and size:
            yield _Candidate("running-mean", top / (counts * size), True, divisor="S x B", treatment=treatment)
        if not weighted:
            yield _Candidate("running-mean", top / (bottom + 1), divisor="S + 1", treatment=treatment)
            yield _Candidate("running-mean", top / (bottom - 1), divisor="S - 1", treatment=treatment)
            whole = run.facts.get("dataset_size")
            if size and isinstance(whole, int) and whole % size:
                yield _Candidate("running-mean", top / (whole / size), divisor="N / B", treatment=treatment)


def _moving(loss: np.ndarray, rows: np.ndarray, value: np.ndarray, treatment: str) -> Iterator[_Candidate]:
    sums = np.append(0.0, np.cumsum(loss))
    # The window that fits the last values best; its residual says whether it is one.
    late = rows[-8:]
    lengths = np.arange(2, min(LONGEST, len(loss) // 2) + 1)
    if len(lengths):
        first = np.maximum(0, late[:, None] + 1 - lengths)
        means = (sums[late + 1][:, None] - sums[first]) / (late[:, None] + 1 - first)
        k = int(lengths[np.abs(means - value[-8:, None]).max(axis=0).argmin()])
        first = np.maximum(0, rows + 1 - k)
        made = (sums[rows + 1] - sums[first]) / (rows + 1 - first)
        yield _Candidate("moving-window", made, window=k, treatment=treatment)


def _averages(loss: np.ndarray, rows: np.ndarray, value: np.ndarray) -> Iterator[_Candidate]:
    """Exponential moving averages with the gamma that fits: plain, and divided by 1 - gamma^t."""
    good = np.isfinite(loss)
    treatment = "" if good.all() else "last"  # an average that is not fed keeps its level
    if treatment:
        loss = loss[np.maximum.accumulate(np.where(good, np.arange(len(loss)), 0))]
        if not good[0]:
            return
    near = np.flatnonzero(np.diff(rows) == 1) + 1
    if len(near) >= LEAST:  # M_t - L_t = gamma (M_{t-1} - L_t)
        apart, ahead = value[near] - loss[rows[near]], value[near - 1] - loss[rows[near]]
        size = float((ahead * ahead).sum())
        if size > 0:
            gamma = float((apart * ahead).sum() / size)
            if 0 < gamma < 1:
                gamma = round(gamma, 4)
                yield _Candidate("moving-average", _average(loss, rows, value, gamma), gamma=gamma, treatment=treatment)
    else:
        for gamma in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999):
            yield _Candidate("moving-average", _average(loss, rows, value, gamma), gamma=gamma, treatment=treatment)
    t = rows + 1.0
    for gamma in (0.6, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999):  # those that loggers offer
        weight = 1 - gamma**t
        made = _average(loss, rows, value * weight, gamma) / weight
        yield _Candidate("moving-average", made, gamma=gamma, treatment=treatment)


def _average(loss: np.ndarray, rows: np.ndarray, value: np.ndarray, gamma: float) -> np.ndarray:
    """The moving average that begins at the first logged value, at the logged steps."""
    part = loss[rows[0] + 1 : rows[-1] + 1]
    made = np.empty(len(part) + 1)
    made[0] = level = float(value[0])
    lag = np.arange(BLOCK)
    kernel = np.where(lag[:, None] >= lag, (1 - gamma) * gamma ** np.maximum(lag[:, None] - lag, 0), 0.0)
    fading = gamma ** (lag + 1.0)
    for at in range(0, len(part), BLOCK):
        block = part[at : at + BLOCK]
        n = len(block)
        made[at + 1 : at + 1 + n] = kernel[:n, :n] @ block + fading[:n] * level
        level = float(made[at + n])
    return made[rows - rows[0]]


def _epoch_starts(run: Run) -> np.ndarray:
    """Row of the first step of each row's epoch, [T]; row 0 where epochs are not known."""
    t = np.arange(len(run))
    if run.epoch is not None:
        return np.maximum.accumulate(np.where(np.diff(run.epoch, prepend=run.epoch[0] - 1) != 0, t, 0))
    if run.steps_per_epoch:
        return np.searchsorted(run.step, run.step // run.steps_per_epoch * run.steps_per_epoch)
    return 0 * t


def _words(c: _Candidate | Plotted, every: int, of_epoch: bool) -> str:
    how = ", weighted by samples" if c.weighted else ""
    if c.divisor:
        how += f", divided by {c.divisor}"
    epoch = "epoch's losses" if of_epoch else "losses since the epoch began"
    said = {
        "loss": "the loss of the step" if every == 1 else f"the loss of every {ordinal(every)} step",
        "running-mean": f"the mean of the {epoch}{how}",
        "mean-from-start": f"the mean of all losses since the training began{how}",
        "window-mean": f"the mean of the losses since the value before{how}",
        "moving-window": f"the mean of the latest {c.window} losses",
        "moving-average": f"a moving average of the losses, gamma {c.gamma or 0:g}",
    }[c.form]
    return f"{said}, {TREATMENTS[c.treatment]}" if c.treatment else said
