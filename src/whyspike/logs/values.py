"""What the values of a log are: rounded, averaged over a window, a sample of the steps, one for each epoch."""

from __future__ import annotations

import numpy as np

from whyspike.form import count, number
from whyspike.points import spacing
from whyspike.types import Note

SHORT = 64  # points: the window that an event's height is measured against (whyspike.detect.MEDIAN_STEPS)
COARSE = (
    0.2  # a last digit beyond this share of the scatter hides what is smaller (its rounding adds 1/12 of its square)
)


def zero_of(step: np.ndarray) -> int:
    """The number that the log gives the first update: 1 where it logs k, 2k, …; 0 where it logs 0, k, … or k-1, …"""
    every, _ = spacing(step)
    return int(bool(len(step)) and step[0] > 0 and step[0] % every == 0)


def notes(step: np.ndarray, loss: np.ndarray, zero: int, averaged: str | None, *, epoch_only: bool) -> list[Note]:
    """What must be known of the values before anything is read from them."""
    made = []
    every, regular = spacing(step)
    if epoch_only:
        text = f"the log has one value for each of {count(len(step))} epochs; what happens inside an epoch is not in it"
        made.append(Note(id="epoch-only", text=text))
    elif len(step) > 2 and not regular:
        span = int(step[-1]) - int(step[0]) + 1
        text = (
            f"{count(len(step))} of {count(span)} steps, at irregular distances: a sample of the run, with gaps between"
        )
        made.append(Note(id="sampled-values", text=text))
    if averaged:
        made.append(Note(id="averaged-values", text=averaged))
    if len(step) and not epoch_only and step[0] - zero > 4 * max(every, 1) + 16:
        text = f"the log begins at step {count(int(step[0]))}; what was before it is not in it"
        made.append(Note(id="truncated-head", text=text))
    quantum = quantum_of(loss)
    if quantum is not None:
        made.append(
            Note(
                id="rounded-values",
                text=f"the loss is logged in steps of {number(quantum)}, which is near its own scatter",
            )
        )
    if len(step) < SHORT and not epoch_only:
        text = f"{count(len(step))} values were logged; an event is measured against the {SHORT} before it"
        made.append(Note(id="too-short", text=text))
    return made


def quantum_of(loss: np.ndarray) -> float | None:
    """The unit of the last digit, where it is coarse beside the loss's own scatter; None where it is not."""
    finite = loss[np.isfinite(loss)]
    if len(finite) < 16:
        return None
    for decimals in range(7):
        unit = 10.0**-decimals
        if np.all(np.abs(finite - np.round(finite, decimals)) < 1e-9 * np.maximum(1.0, np.abs(finite))):
            # Half of the neighbours differ by less than this: .95 sigma of white noise.
            scatter = float(np.median(np.abs(np.diff(finite[-512:])))) / 0.95
            return unit if unit > COARSE * scatter else None
    return None
