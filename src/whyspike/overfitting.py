"""Over-fitting, as a note beside the answer: the loss on held-out data rises for long while the training loss falls.

It is never the cause of a spike, but the reader of a loss curve must know of it. The rule is made for silence: it
speaks of fewer than one in a hundred healthy validation curves of 15 to 200 values that fall to a plateau, with AR(1)
noise of rho 0 to .99; of up to one in twenty where the plateau itself wanders by 10 % for most of the run
(tests/test_overfitting.py).
"""

from __future__ import annotations

import re

import numpy as np

from whyspike.form import count
from whyspike.signals import logged
from whyspike.types import Note, Run, Series

HELD_OUT = frozenset({"val", "valid", "validation", "eval", "test", "dev", "heldout"})
LOSSES = frozenset({"loss", "nll", "ce", "xent", "crossentropy", "ppl", "perplexity", "mse"})
LEAST = 15  # evaluations
PARTS = 6  # of the run
LONG = 3  # parts after the lowest: half of the run
RISE = 0.1  # of the lowest level
CLEAR = 4.0  # standard deviations of single evaluations about the line of their part


def overfitting(run: Run) -> Note | None:
    """The note for a run whose held-out loss has risen for half of the run or more while its training loss fell.

    The run is cut into six parts by its evaluations. The lowest part must be one of the first three; every later part
    must lie above the one before, the last by 10 % and by four standard deviations of a single evaluation above the
    lowest. The training loss must fall from the lowest part to the last.
    """
    for name, series in logged(run).items():
        if is_held_out_loss(name):
            made = _of(run, name, series)
            if made is not None:
                return made
    return None


def is_held_out_loss(name: str) -> bool:
    """Whether a name says that it is a loss on held-out data."""
    words = set(re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()).split())
    return bool(words & HELD_OUT) and bool(words & LOSSES)


def _of(run: Run, name: str, series: Series) -> Note | None:
    good = np.isfinite(series.value) & (series.value > 0)
    step, value = series.step[good], series.value[good]
    if len(step) < LEAST:
        return None
    parts = np.array_split(np.arange(len(step)), PARTS)
    level = np.array([value[p].mean() for p in parts])
    about = _spread(np.concatenate([_about_line(value[p]) for p in parts])) * _freedom(parts)
    noise = max(about, _spread(np.diff(value, 2)) / 6**0.5)
    low = int(level.argmin())
    later = level[low:]
    if low > PARTS - 1 - LONG or later[-1] - later[0] < max(RISE * later[0], CLEAR * noise):
        return None
    if (np.diff(later) <= 0).any():
        return None
    before, after = (_train(run, int(step[parts[k][0]]), int(step[parts[k][-1]])) for k in (low, PARTS - 1))
    if before is None or after is None or not after < before:
        return None
    at = int(value.argmin())
    text = (
        f"{name} was lowest at step {count(int(step[at]))} ({value[at]:.3g}) and has risen to {later[-1]:.3g} since, "
        f"while the training loss fell from {before:.3g} to {after:.3g}: the network learns its training samples by "
        "heart. That makes no spike; stop where the held-out loss is lowest, use more data, or regularise"
    )
    return Note(id="overfitting", text=text)


def _about_line(x: np.ndarray) -> np.ndarray:
    t = np.arange(len(x)) - (len(x) - 1) / 2
    slope = (t * x).sum() / max(float((t * t).sum()), 1e-300)
    return x - x.mean() - slope * t


def _spread(x: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(x)))


def _freedom(parts: list[np.ndarray]) -> float:
    """A line takes two degrees of freedom from each part."""
    n = sum(len(p) for p in parts)
    return float(np.sqrt(n / max(1, n - 2 * len(parts))))


def _train(run: Run, first: int, last: int) -> float | None:
    loss = run.loss[(run.step >= first) & (run.step <= last)]
    loss = loss[np.isfinite(loss)]
    return float(np.median(loss)) if len(loss) else None
