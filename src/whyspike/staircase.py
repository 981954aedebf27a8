"""A loss that steps down where an epoch begins and is flat inside: the staircase of a network that remembers samples.

The step at a boundary is the mean of log loss over the last tenth of an epoch minus that over the first tenth of the
next. It is held against the same difference at places inside the epochs, where the loss moves only as it always does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from whyspike.points import as_points, spacing
from whyspike.types import Run

TENTH = 0.1  # of an epoch, on either side of a boundary (causes.md A2)
LEAST_POINTS = 20  # of an epoch, so that a tenth of it is two
LEAST_STEP = 0.05  # nats; a smaller step cannot be seen in a plot
SURE = 5.0  # standard errors of the mean of the first steps (docs/benchmarks/curves.md)
EACH = 2.0  # standard errors of a single one of them
FIRST = 3  # boundaries: a network has nothing left to remember after some
KEPT = 0.5  # of a step is not taken back inside the epoch that follows: else it is a sawtooth
FLAT = 1.0  # times the step: the loss falls by less inside an epoch
SETTLED = 0.25  # of the scatter at an epoch's begin is left at its end: of a running mean about 1 / 17
EVEN = 4.0  # times the scatter at the begin: what a running mean gives back stays even, any other value grows 17 times
RISES = 0.1  # of the steps, where the learning rate is not known
CUT = 0.8  # the learning rate falls below this share within the boundary's surroundings: it is cut there


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The steps of a loss at the boundaries of its epochs."""

    steps: tuple[int, ...]  # first step of each epoch that begins with a step down
    last: tuple[int, ...]  # last step of the tenth that follows each
    levels: tuple[tuple[float, float], ...]  # loss before and after each, geometric means
    drops: tuple[float, ...]  # nats, of each
    error: float  # standard error of one step, from places inside the epochs
    rises: tuple[
        float, ...
    ]  # nats from the first to the last tenth inside the epoch that each begins; negative: it falls
    lr_ratio: tuple[float, ...]  # learning rate after over before each; empty where it is not known


def find_staircase(run: Run) -> Staircase | None:
    """The staircase of a run; None where it has none, or where its epochs are not known."""
    points = as_points(run)
    if points.epoch is None or not points.steps_per_epoch or points.steps_per_epoch < LEAST_POINTS:
        return None
    loss = points.loss
    if not np.isfinite(loss).all() or loss.min() <= 0 or len(loss) < 2 * LEAST_POINTS:
        return None
    y = np.log(loss)
    starts = np.flatnonzero(np.diff(points.epoch) != 0) + 1
    edges = [0, *starts.tolist(), len(y)]
    wide = max(2, int(TENTH * points.steps_per_epoch))
    # The point in which one epoch ends and the next begins belongs to neither where values are averaged.
    skip = int(any(n.id == "averaged-values" for n in run.notes))
    found = [
        k for k in range(1, len(edges) - 1) if edges[k + 1] - edges[k] >= wide + skip and edges[k] - edges[k - 1] > wide
    ]
    if not found:
        return None
    first_drops = [_drop(y, edges[k], wide, skip) for k in found[:FIRST]]
    if first_drops[0] < LEAST_STEP or sum(d >= LEAST_STEP for d in first_drops) < min(2, len(first_drops)):
        return None
    error = _error(y, edges, wide)
    steps, last, levels, drops, rises, rates = [], [], [], [], [], []
    for k in found:
        at = edges[k]
        before, after = y[at - 1 - wide : at - 1], y[at + skip : at + skip + wide]
        drop = _drop(y, at, wide, skip)
        if drop < max(LEAST_STEP, EACH * error):
            continue
        end = edges[k + 1]
        rise = float(_mean(y[end - 1 - wide : end - 1]) - _mean(after)) if end - at > 2 * wide + skip else 0.0
        steps.append(int(run.step[at]))
        last.append(int(run.step[min(at + skip + wide, len(y)) - 1]))
        levels.append((float(np.exp(_mean(before))), float(np.exp(_mean(after)))))
        drops.append(drop)
        rises.append(rise)
        if points.lr is not None:
            rates.append(_lr_ratio(points.lr, at, wide))
    # Every boundary shows it until the network has nothing left to remember: the first ones must.
    first = [int(run.step[edges[k]]) for k in found[:FIRST]]
    early = [k for k, step in enumerate(steps) if step in first]
    fallen, risen = sum(drops[k] for k in early), sum(rises[k] for k in early)
    if not early or steps[0] != first[0] or len(early) < min(2, len(first)):
        return None
    if fallen / len(first) < SURE * error / len(first) ** 0.5 or not -FLAT * fallen <= risen <= KEPT * fallen:
        return None
    if sum(rises) > KEPT * sum(drops):  # early on a sawtooth hides in the fall of the loss itself; later it does not
        return None
    if _is_running_mean(run, edges):
        return None
    # A cut of the learning rate steps the loss down, too. Where the rate is not known only a rise inside speaks
    # against it.
    known = [r for r in rates if np.isfinite(r)]
    if known[0] < CUT if known else risen < max(RISES * fallen, 3 * error * len(early) ** 0.5):
        return None
    return Staircase(
        steps=tuple(steps), last=tuple(last), levels=tuple(levels), drops=tuple(drops), error=error,
        rises=tuple(rises), lr_ratio=tuple(r for r in rates if np.isfinite(r)),
    )  # fmt: skip


def _drop(y: np.ndarray, at: int, wide: int, skip: int) -> float:
    """How far the level falls at a boundary, nats. An epoch's last batch may be a smaller one: it is left out."""
    return _mean(y[at - 1 - wide : at - 1]) - _mean(y[at + skip : at + skip + wide])


def _mean(y: np.ndarray) -> float:
    """The mean, with values beyond four times their scatter cut off: one spike is not a level."""
    middle = float(np.median(y))
    scatter = 1.4826 * float(np.median(np.abs(y - middle)))
    return float(np.mean(np.clip(y, middle - 4 * scatter, middle + 4 * scatter))) if scatter > 0 else middle


def _error(y: np.ndarray, edges: list[int], wide: int) -> float:
    """How far the same difference scatters at places inside the epochs; the drift of the loss is part of it."""
    seen = []
    for first, end in itertools.pairwise(edges):
        own = [_mean(y[at - wide : at]) - _mean(y[at : at + wide]) for at in range(first + wide, end - wide + 1, wide)]
        seen += own if first else own[2:]  # the first steps of a training fall on their own
    if len(seen) < 4:
        return float("inf")
    inside = np.array(seen)
    # A robust scatter of few values is itself uncertain: half a step more for each missing one, up to eight.
    few = 1.0 + max(0, 12 - len(inside)) / 16
    return few * float(max(np.sqrt(np.mean(np.clip(inside, *np.quantile(inside, [0.05, 0.95])) ** 2)), 1e-6))


def _lr_ratio(lr: np.ndarray, at: int, wide: int) -> float:
    """The learning rate after a boundary over that before, beyond what it changes by on either side."""
    low, high = max(0, at - wide), min(len(lr), at + wide)
    before, after = lr[low:at], lr[at:high]
    if (
        len(before) < 2
        or len(after) < 2
        or not np.isfinite([*before, *after]).all()
        or before[-1] <= 0
        or after.max() <= 0
    ):
        return float("nan")
    return float(after[0] / before[-1])


def _is_running_mean(run: Run, edges: list[int]) -> bool:
    """Whether the values are means since the epoch's begin, which also step down there.

    Such a mean moves by 1 / s of what a single value does, and s M(s) - (s - 1) M(s - 1) gives that value back, as
    noisy at the end of the epoch as at its begin. Of values that are no means the one gives an even scatter, and the
    other one that grows with s.
    """
    if run.index is None:
        return False
    moved, given_back = [], []
    every, _ = spacing(run.step)
    for first, end in itertools.pairwise(edges[1:]):
        s = run.index[first:end].astype(np.float64) + 1
        value = (s[1:] * run.loss[first + 1 : end] - (s[1:] - every) * run.loss[first : end - 1]) / every
        for series, ratios in ((run.loss[first:end], moved), (value, given_back)):
            inside = np.abs(np.diff(series))
            tenth = len(inside) // 10
            if tenth >= 2 and np.median(inside[:tenth]) > 0:
                ratios.append(float(np.median(inside[-3 * tenth :]) / np.median(inside[:tenth])))
    if not moved or not given_back:
        return False
    return float(np.median(moved)) < SETTLED or float(np.median(given_back)) < EVEN
