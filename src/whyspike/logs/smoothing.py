"""Whether the values of a log are a moving mean of the losses, by how they hang together; and the losses, taken apart.

The losses of neighbouring steps are as good as independent, so that the differences of plain losses have an
autocorrelation of -1/2 at lag 1. Those of a mean over the last k steps have it at lag k, and those of an exponential
moving average with the factor gamma have next to none, -(1 - gamma) / 2 (both follow from the definitions).
"""

from __future__ import annotations

import numpy as np

from whyspike.deconvolve import Recovered, decay_of, moving_average, moving_window
from whyspike.form import count, number
from whyspike.types import Note

LEAST = 256  # values: an autocorrelation is then known to .06
WINDOW = -0.35  # of the autocorrelation at the lag of the window, which is -.5
REST = 0.16  # of all others
EVEN = 1.5  # mean over median of the differences' sizes: 1.18 for a normal distribution
FACTORS = (0.8, 0.985)  # of an average that can be told: from a rougher loss, and from one that drifts by itself
CLEAR = 0.1  # of the scatter of the losses: a larger rounding error does not let them be taken apart


def moving_mean(step: np.ndarray, loss: np.ndarray) -> Note | None:
    """What the values are a mean of, and the highest loss behind them; None where nothing says that they are one."""
    if len(loss) < LEAST or not np.isfinite(loss).all():
        return None
    moves = np.diff(loss)
    scatter = 1.4826 * float(np.median(np.abs(moves - np.median(moves))))
    if scatter == 0:
        return None
    if not _even(np.clip(moves, -4 * scatter, 4 * scatter)):
        return None
    moves = np.where(np.abs(moves) < 3 * scatter, moves, 0.0)  # a spike, and how it fades, hang together by themselves
    seen = _autocorrelation(moves - moves.mean(), min(512, len(loss) // 8))
    k = int(np.argmin(seen))
    others = np.delete(seen, [0, k])
    if k >= 2 and seen[k] < WINDOW and np.abs(others).max() < REST:
        apart = moving_window(loss, k)
        return _note(f"a mean over the last {k} steps", f"1/{k} of its height for {k} values", step, loss, apart)
    gamma = decay_of(loss)
    if np.abs(seen[1:]).max() < REST and FACTORS[0] <= gamma <= FACTORS[1]:
        apart = moving_average(loss, gamma)
        what = f"an exponential moving average with a factor of about {gamma:.2f}"
        return _note(what, f"{1 - gamma:.0%} of its height, and fades", step, loss, apart)
    return None


def _even(moves: np.ndarray) -> bool:
    """Whether the differences are of one size: those of a mean since the epoch's begin shrink through every epoch."""
    sizes = [np.abs(part - np.median(part)) for part in np.array_split(moves, max(1, len(moves) // LEAST))]
    return float(np.median([s.mean() / max(float(np.median(s)), 1e-300) for s in sizes])) < EVEN


def _note(what: str, how: str, step: np.ndarray, loss: np.ndarray, apart: Recovered) -> Note:
    text = f"the values hang together as in {what}; a spike of one step stands in it with {how}"
    known = np.isfinite(apart.loss)
    found, limit = apart.loss[known], apart.limit[known]
    spread = 1.4826 * float(np.median(np.abs(found - np.median(found))))
    if float(np.median(limit)) <= CLEAR * spread:
        at = int(np.argmax(found))
        highest, where, plotted = number(float(found[at])), count(int(step[known][at])), number(float(loss.max()))
        text += f". Taken apart, the highest loss is {highest}, at step {where} ({plotted} as plotted)"
    else:
        text += ". They are rounded too much to be taken apart: log more digits"
    return Note(id="averaged-values", text=text)


def _autocorrelation(x: np.ndarray, lags: int) -> np.ndarray:
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(2 * len(x), real=True)
    found = np.asarray(irfft(np.abs(np.asarray(rfft(x, size))) ** 2, size))[: lags + 1]
    return found / found[0] if found[0] > 0 else np.zeros(lags + 1)
