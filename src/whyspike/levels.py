"""From one level of the loss to another: an abrupt step between two, and a rise too slow to cross any line."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log

WIDTH = 64  # values that are looked at, as many as the running median of the loss has
BEFORE, AFTER = 40, 48  # the old level ends, the new one begins: between them the step may take place
LEAST_JUMP = log(1.2)
BLOCK = 32  # values of a median
DIVERGED = 3.0  # a level that ends above this factor of the old one has diverged; below, it has shifted
RISE = 4.0  # standard errors of a block's median; at most 3.1 in 164,000 steps of the case batch-size-noise, seeds 0-39
MEDIAN_ERROR = 0.164  # of 32 values, in units of their interquartile range: 1.253 / sqrt(32) / 1.349


@dataclass(frozen=True, slots=True)
class Jump:
    """An abrupt step from one level to another."""

    onset: int  # place of the first value of the new level, from 0
    height: float  # new level minus old, of log loss; negative where it falls
    level: float  # the new one


def may_jump(y: Sequence[float]) -> bool:
    """Whether a step may lie in the latest `WIDTH` values: two of each level tell nearly always that none does."""
    a, b, c, d = y[0], y[BEFORE - 1], y[AFTER], y[-1]
    return a < c > b < d > a or a > c < b > d < a


def jump(y: Sequence[float]) -> Jump | None:
    """Compare the latest 16 of `WIDTH` values of log loss with the 40 first: an abrupt step from one level to another.

    The two must not overlap, the step be wider than 1.5 times what either level spans, and all but one of the values
    between them belong to one or the other.
    """
    before, between, after = y[:BEFORE], y[BEFORE:AFTER], y[AFTER:]
    if max(after) < min(before):
        sign = -1.0
    elif min(after) > max(before):
        sign = 1.0
    else:
        return None
    old, new = sorted(before[-16:])[8], sorted(after)[8]
    height = sign * (new - old)
    drift = max(sign * (old - sorted(before[:16])[8]), sign * (sorted(after[8:])[4] - sorted(after[:8])[4]))
    middle = 0.5 * (old + new)
    beyond = [sign * (v - middle) > 0 for v in between]
    inside = sum(abs(v - middle) < 0.25 * height for v in between)
    spread = max(max(before) - min(before), max(after) - min(after))
    if height < LEAST_JUMP or height < 1.5 * spread or drift > 0.25 * height or inside > 1 or beyond != sorted(beyond):
        return None
    return Jump(AFTER - sum(beyond), new - old, new)


@dataclass(frozen=True, slots=True)
class Rise:
    """A rise of medians."""

    onset: int  # step at which the first of the blocks that rise begins
    height: float  # of log loss, since the block before them
    level: float  # median of the latest block


class SlowRise:
    """Whether medians of 32 steps rise four times running, to over three times the lowest of them all.

    So slow a rise takes the running median and the noise along, and crosses no line. Where the noise itself is wide the
    rise must also be one that such medians do not make by chance.
    """

    def __init__(self) -> None:
        self._blocks: deque[tuple[int, float]] = deque(maxlen=5)  # first step and median of the latest blocks
        self._lowest = inf  # of the medians

    def clear(self) -> None:
        """Begin again, from a new level."""
        self._blocks.clear()
        self._lowest = inf

    def update(self, step: int, y: Sequence[float]) -> bool:
        """Take in the block that ends with a step, the last of `WIDTH` values: whether it lies above the one before."""
        level = sorted(y[WIDTH - BLOCK :])[BLOCK // 2]
        higher = bool(self._blocks) and level > self._blocks[-1][1]
        self._blocks.append((step - BLOCK + 1, level))
        self._lowest = min(self._lowest, level)
        return higher

    def found(self, y: Sequence[float]) -> Rise | None:
        """The rise that the latest blocks make, where they make one; it is then the level to rise from."""
        levels = [v for _, v in self._blocks]
        if len(levels) < 5 or levels[-1] - self._lowest < log(DIVERGED):
            return None
        if any(b - a < 0.05 for a, b in pairwise(levels)):
            return None
        ordered = sorted(y)
        height = levels[-1] - levels[0]
        if height < RISE * MEDIAN_ERROR * (ordered[48] - ordered[16]):
            return None
        self._lowest = levels[-1]
        return Rise(self._blocks[1][0], height, levels[-1])
