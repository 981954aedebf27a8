"""What a log alone can show of a cause that otherwise needs the network: signs in the places and shapes of events.

They make a cause likely, never certain. None of them is used where the training itself was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, factorial, log

import numpy as np

from whyspike.detect import FULL_BATCH_STEPS, MEDIAN_STEPS
from whyspike.types import Event, Run

CHANCE = 0.02  # of single events falling one into each epoch: 6 or more epochs
ORDINARY = 3.0  # times the median of the finite losses before: higher ones grow towards what is not finite
BEFORE = 8  # of these losses
NEAR = 5  # steps above the line after a peak that still are of it
MEMORY = 0.1  # of a spike's height: a loss that is lower has forgotten it
MOSTLY = 0.5  # of the epochs
LEAST_ALONE = 3  # spikes of a training whose steps all see the same data


@dataclass(frozen=True, kw_only=True)
class OncePerEpoch:
    """Spikes of which every whole epoch has exactly one, each time at another place."""

    events: tuple[Event, ...]
    places: tuple[int, ...]  # steps since the epoch began
    chance: float  # that as many spikes fall so, were each epoch as likely as any other: K! / K^K


def of_log(run: Run) -> bool:
    """Whether another tool wrote the record, so that nothing can be replayed."""
    return "reader_says" in run.facts


def once_per_epoch(run: Run, events: Sequence[Event]) -> OncePerEpoch | None:
    """Whether the single spikes come as one sample of a reshuffled data set does: once in every epoch, anywhere."""
    length = run.steps_per_epoch
    spikes = tuple(e for e in events if e.kind == "spike" and not e.period)
    if not of_log(run) or run.index is None or run.epoch is None or not length or length < 8 or not spikes:
        return None
    whole = {int(k) for k, n in zip(*np.unique(run.epoch, return_counts=True), strict=True) if n >= 0.9 * length}
    rows = [r for r in _peaks(run, spikes) if int(run.epoch[r]) in whole]
    epochs, places = [int(run.epoch[r]) for r in rows], [int(run.index[r]) for r in rows]
    k = len(whole)
    if k < 2 or len(epochs) != k or set(epochs) != whole or np.ptp(places) < length / 4:
        return None
    chance = factorial(k) / float(k) ** k if k < 100 else 0.0
    return OncePerEpoch(events=spikes, places=tuple(places), chance=chance) if chance <= CHANCE else None


def _peaks(run: Run, spikes: Sequence[Event]) -> list[int]:
    """The rows at which the loss rises half as high, in logs, as the lowest of the spikes; near ones are one."""
    line = 0.5 * min(log(e.reported) if e.reported and e.reported > 1 else 0.0 for e in spikes)
    found: list[int] = []
    last = 0
    for row in _above(run.loss, exp(line)) if line > 0 else ():
        if not found or row - last > NEAR:
            found.append(row)
        last = row
    return found


def _above(loss: np.ndarray, factor: float) -> list[int]:
    """The rows whose loss is so many times the median of the 64 before them, where that is above 0."""
    from scipy.ndimage import minimum_filter1d

    clear = np.where(np.isfinite(loss), loss, np.inf)
    # Of the 64 rows before each: what is not above their lowest by the factor is not above their median.
    lowest = minimum_filter1d(clear, MEDIAN_STEPS, mode="constant", cval=np.inf, origin=MEDIAN_STEPS // 2 - 1)
    lowest = np.append(np.inf, lowest[:-1])
    with np.errstate(invalid="ignore"):
        maybe = np.flatnonzero((loss > lowest * factor) | (lowest <= 0))
    level = np.array([float(np.median(loss[:r])) if r else np.nan for r in maybe[maybe < MEDIAN_STEPS].tolist()])
    late = maybe[maybe >= MEDIAN_STEPS]
    if len(late):
        windows = np.lib.stride_tricks.sliding_window_view(loss, MEDIAN_STEPS)
        parts = np.array_split(late, -(-len(late) // 8192))
        level = np.concatenate([level, *(np.median(windows[part - MEDIAN_STEPS], axis=1) for part in parts)])
    return maybe[(level > 0) & (loss[maybe] > factor * level)].tolist()


def shape_of(run: Run, event: Event) -> str:
    """What the shape of an event says: a batch or the plotted number, or the network itself; empty where nothing."""
    if any(note.id in ("averaged-values", "epoch-only", "sampled-values") for note in run.notes):
        return ""
    if event.kind == "non-finite":
        first = int(np.searchsorted(run.step, event.step))
        rest = run.loss[first:]
        if np.isfinite(rest).any():
            return "The loss is finite again afterwards: the network was not lost, that step's number was."
        return "No value after it is finite: from there on the network itself holds nan or inf."
    if event.kind == "divergence":
        return "The loss does not come back: the network itself moved, and no single batch does that to all others."
    if event.kind != "spike" or event.period:
        return ""
    row = int(np.searchsorted(run.step, event.step))
    last = int(np.searchsorted(run.step, event.last_step, side="right"))
    before = run.loss[max(0, row - MEDIAN_STEPS) : row]
    part = run.loss[row:last]
    if len(before) < BEFORE or not np.isfinite(part).all():
        return ""
    level, peak = float(np.median(before)), row + int(part.argmax())
    line = level + MEMORY * (float(run.loss[peak]) - level)
    after = run.loss[peak + 1 : peak + 1 + MEDIAN_STEPS]
    below = np.flatnonzero(after <= line)
    if not len(after) or not len(below):
        return ""
    if below[0] == 0:
        return "The next value is back at the level: that batch or its number stands out, and the network kept nothing."
    return (
        f"The loss comes down over {below[0] + 1} values: the network itself had moved, by a large update or a step "
        "size that its curvature does not bear."
    )


def lr_goes_with_the_epoch(run: Run) -> bool:
    """Whether the logged learning rate is higher again where an epoch begins, in most epochs."""
    if run.lr is None or run.epoch is None:
        return False
    starts = np.flatnonzero(np.diff(run.epoch) > 0) + 1
    return bool(len(starts)) and float(np.mean(run.lr[starts] > 1.05 * run.lr[starts - 1])) > MOSTLY


def suddenly_infinite(run: Run) -> int | None:
    """The row at which an ordinary loss is inf from one step to the next, and nothing is finite from then on."""
    loss = run.loss
    bad = np.flatnonzero(~np.isfinite(loss))
    if not of_log(run) or not len(bad) or not np.isposinf(loss[bad[0]]):
        return None
    first = int(bad[0])
    before = loss[:first]
    if first < BEFORE or np.isfinite(loss[first:]).any():
        return None
    if not before[-BEFORE:].max() <= ORDINARY * np.median(before[-4 * BEFORE :]):
        return None
    return first


def same_data_every_step(run: Run, events: Sequence[Event]) -> tuple[Event, ...]:
    """The spikes of a log whose epochs have one step each, where the learning rate does not explain them."""
    spikes = tuple(e for e in events if e.kind == "spike")
    if not of_log(run) or run.steps_per_epoch != 1 or len(run) < FULL_BATCH_STEPS:
        return ()
    if any(note.id in ("epoch-only", "averaged-values") for note in run.notes) or len(spikes) < LEAST_ALONE:
        return ()
    if run.lr is not None and len(run.lr) and np.nanmax(run.lr) > 1.01 * np.nanmin(run.lr):
        return ()
    return spikes
