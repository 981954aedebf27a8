"""What an epoch's small last batch leaves in the network, where the logged loss does not show it.

The loss of a step is computed before its update. A step that harms the network shows in what is measured right after
it: the probe, or the loss of an evaluation at the epoch's end. It may be over before the next logged losses tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.repeats import heights
from whyspike.stats import paired_permutation_p
from whyspike.types import Event, Run, Series

LEAST = 8  # epochs; 2**-8 = .004 is the smallest p
ALPHA = 0.005  # over all signals that are looked at
HIGH = 1.1  # times the level around it: the contract's line between a plotted number and a damaged network
APART = 8  # steps to the values that it is compared with: most of what a small batch did is over by then


@dataclass(frozen=True, kw_only=True)
class AfterLast:
    """A signal that is high right after the small last batch of the epochs."""

    name: str  # of the signal
    factor: float  # over the values around it, median over the epochs
    p_value: float  # one-sided sign-flip test over the epochs, times the signals looked at
    epochs: int


def after_last(run: Run) -> AfterLast | None:
    """Look at the probe and at every logged loss that is no training loss. None where nothing is high."""
    if run.index is None or run.n_samples is None or not run.steps_per_epoch or not run.batch_size:
        return None
    last = run.step[(run.index == run.steps_per_epoch - 1) & (run.n_samples < run.batch_size / 2)]
    if len(last) < LEAST:
        return None
    names = [n for n in run.signals if n == "probe" or ("loss" in n.lower() and "train" not in n.lower())]
    found = []
    for name in names:
        rises = _rises(run.signals[name], last, run.steps_per_epoch)
        if len(rises) >= LEAST:
            p = min(1.0, len(names) * paired_permutation_p(rises, np.zeros(len(rises))))
            found.append(AfterLast(name=name, factor=float(np.exp(np.median(rises))), p_value=p, epochs=len(rises)))
    high = [f for f in found if f.p_value <= ALPHA and f.factor >= HIGH]
    return max(high, key=lambda f: f.factor, default=None)


def _rises(series: Series, last: np.ndarray, period: int) -> np.ndarray:
    """Log of the value right after each of these steps over the mean of the one before it and of the one after."""
    found = []
    for step in last.tolist():
        here = int(np.searchsorted(series.step, step))
        before = int(np.searchsorted(series.step, step - APART, side="right")) - 1
        after = int(np.searchsorted(series.step, step + APART))
        if here >= len(series.step) or series.step[here] != step or before < 0 or after >= len(series.step):
            continue
        if step - series.step[before] > period or series.step[after] - step > period:
            continue
        values = series.value[[before, here, after]]
        if np.isfinite(values).all() and (values > 0).all():
            found.append(float(np.log(values[1]) - np.log(values[[0, 2]]).mean()))
    return np.array(found)


def is_of_last(run: Run, event: Event) -> bool:
    """Whether a single spike is what one small last batch did.

    It begins there, or a few steps before: where the probe alone rises, the highest loss shortly before it is taken for
    the begin, and that may be any.
    """
    if event.kind != "spike" or event.period or run.index is None or run.n_samples is None or not run.steps_per_epoch:
        return False
    small = (run.index == run.steps_per_epoch - 1) & (run.n_samples < (run.batch_size or 0) / 2)
    since = run.step[small] - event.step
    by_state = event.state is not None and event.state >= HIGH
    return bool(np.any((since >= 0) & (since < (APART if by_state else 1))))


def hidden_event(run: Run, found: AfterLast) -> Event:
    """What is seen right after every small last batch, as one periodic event."""
    assert run.index is not None
    assert run.n_samples is not None
    assert run.batch_size is not None
    assert run.steps_per_epoch is not None
    rows = np.flatnonzero((run.index == run.steps_per_epoch - 1) & (run.n_samples < run.batch_size / 2))
    height = heights(run, rows)
    logged = height[np.isfinite(height) & (height > 0)]
    return Event(
        id="",
        kind="periodic",
        step=int(run.step[rows[0]]),
        last_step=int(run.step[rows[-1]]),
        period=run.steps_per_epoch,
        reported=float(np.exp(np.median(np.log(logged)))) if len(logged) else None,
        state=found.factor,
    )
