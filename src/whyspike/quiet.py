"""The ordinary stretches of a long log, taken in at once where a detector would go step by step.

In a stretch without an event every loss enters the running median, so that the medians of all steps are two rank
filters over the whole series. What is left for each step is to keep the noise in order; the lines are placed only where
a residual is high enough to be held against them. The result is that of `Detector.update`, to the last bit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from whyspike.detect import Detector

LEAST = 4096  # losses; fewer are not worth the two filters
ROUNDING = 1e-9  # no line of a full memory lies further below the start of the upper tail


@dataclass(frozen=True, slots=True)
class Ahead:
    """A whole series, looked at before any step of it is taken in."""

    width: int  # W, of the running median
    levels: list[float]  # log loss, [T]; 0 where the loss is not above 0 or not finite
    residuals: list[float]  # levels minus the median of the W before, [T]; of no meaning for the first W
    odd: list[int]  # places of the losses that are not above 0 or not finite

    @classmethod
    def of(cls, losses: Sequence[float], width: int) -> Ahead:
        """Look at a series. `width` is even."""
        from scipy.ndimage import rank_filter

        levels = [log(v) if 0.0 < v < inf else 0.0 for v in losses]
        y = np.array(levels)
        upper, lower = (np.asarray(rank_filter(y, rank, size=width)) for rank in (width // 2, width // 2 - 1))
        residual = np.zeros(len(y))
        # The filter's window at i is i - W / 2 to i + W / 2 - 1: the W values before i + W / 2.
        middle = (0.5 * (upper + lower))[width // 2 : len(y) - width // 2]
        residual[width:] = y[width:] - middle
        odd = [k for k, v in enumerate(losses) if not 0.0 < v < inf]
        return cls(width, levels, residual.tolist(), odd)

    def fits(self, recent: deque[float], at: int) -> bool:
        """Whether the running median before a place is that of the series itself: no value was kept out of it."""
        return len(recent) == self.width <= at and list(recent) == self.levels[at - self.width : at]


def take_in(
    detector: Detector, steps: Sequence[int], losses: Sequence[float], ahead: Ahead, begin: int
) -> tuple[int, bool]:
    """Take in steps as long as they are ordinary, as `Detector.update` would one by one.

    Returns:
        The place of the first step that was not taken in; or that of the last that was, and True, when the level of
        the loss has shifted there.
    """
    channel, row = detector._loss, detector._row
    memory = channel.lines.memory
    if detector._open is not None or detector._dip is not None or channel.unit:
        return begin, False
    if len(channel.noise) < memory or channel.n < 256 or not ahead.fits(channel.recent, begin):
        return detector._quiet(steps, losses, None, None, begin, min(begin + ahead.width, len(losses)))
    levels, residuals, width = ahead.levels, ahead.residuals, ahead.width
    noise, ordered, n, learned = channel.noise, channel.ordered_noise, detector._n, channel.n
    latest, nearest = detector._latest, -channel.lines.down_floor  # the line of a dip is never nearer
    watched, known, ends = channel.up - ROUNDING, True, channel.ends()
    next_odd = bisect_left(ahead.odd, begin)
    end = ahead.odd[next_odd] if next_odd < len(ahead.odd) else len(losses)
    news, at = False, begin
    for at in range(begin, end):
        residual = residuals[at]
        if residual > watched or residual < nearest or row.going:
            if not known:
                channel.place(*ends)
                known = True
            up = channel.up
            if residual > channel.high or residual < channel.down:
                break
            if residual > up and row.onset >= 0:
                break
            if residual > up or row.going:
                row.update(channel, steps[at], residual, levels[at], residual, full=True)
            if residual > channel.low:
                detector._above_low(steps[at], residual, levels[at], residual)
        noise.append(residual)
        insort(ordered, residual)
        del ordered[bisect_left(ordered, noise.popleft())]
        n += 1
        learned += 1
        if not learned & 7:
            ends, known = channel.ends(), False
            watched = ends[0] - ROUNDING
        if not n & 7:
            first = levels[at - width + 1]
            b, c, d = levels[at - width + 40], levels[at - width + 49], levels[at]
            if not n & 31 or first < c > b < d > first or first > c < b > d < first:
                channel.replace(levels[at - width + 1 : at + 1])
                latest.extend(channel.recent)
                detector._n = n
                if detector._look_at_level(steps[at]):
                    news = True
                    break
    else:
        at = end
    after = at + news
    if not known:
        channel.place(*ends)
    if after > begin:
        detector._residual = residuals[after - 1]
        if not news:  # else it was done before the level was looked at, which may have a window of its own
            channel.replace(levels[after - width : after])
            latest.extend(channel.recent)
        channel.raw.extend(losses[max(begin, after - width) : after])
    detector._n, channel.n = n, learned
    return at, news
