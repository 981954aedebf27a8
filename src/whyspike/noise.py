"""The noise of one series, and the lines that a value must cross to be out of the ordinary.

A value becomes y = log value and is judged by its residual, y minus the median of the latest values. An exponential
tail is fitted to the largest residuals seen (peaks over threshold; Siffer et al., KDD 2017), once to the residuals
and once to the values themselves, so that neither a lognormal nor a Gaussian noise is taken for spikes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from math import exp, inf, log


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Where the lines of a series lie: at least at the floor (nats), and so many mean excesses beyond the tail."""

    memory: int  # residuals that the tail is fitted to
    high_tail: float
    high_linear: float  # the same on the linear scale; the lower of the two lines holds
    high_floor: float
    low_tail: float
    low_floor: float
    down_tail: float = inf
    down_floor: float = inf


TAIL = 16  # one residual in so many makes the tail
START = 2.0  # nats added at step 0 and fading over 6 steps: the first losses move on their own
FEW = 45.0  # a line lies 1 + FEW / n as far beyond the tail of n residuals: it is known less well, and still widens
# Where the log residuals of the tail have a mean excess above HEAVY the tail is a power law (its exponent is one over
# that excess), and the largest of many values lies far more mean excesses out: by a factor e per quarter of a nat.
HEAVY, HEAVIER = 0.25, 4.0
# A dip must be so many times as far below the median as the lowest of 64 values, 2.4 standard deviations of Gaussian
# noise. Near zero the logarithm makes a dip of any low value.
DEEP = 2.5
# While little is known the lines are wide, and a spike of those steps is taken for noise. When so many residuals are
# known, the largest are set aside if the others would have called them a spike: they would hide all later ones.
CLEANED, SET_ASIDE = 64, 2


class Channel:
    """One series: its running median, and the lines learnt from its residuals.

    A value is turned into y = log value. When a value is negative the series is read on its raw scale instead,
    in units in which its own spread is that of an ordinary log loss (0.1).
    """

    __slots__ = (
        "down", "excess", "high", "lines", "low", "n", "noise", "ordered", "ordered_noise", "raw", "recent", "unit",
        "up", "width",
    )  # fmt: skip

    def __init__(self, width: int, lines: Lines) -> None:
        self.width, self.lines = width, lines
        self.unit = 0.0  # 0: logarithms; otherwise y = value / unit
        self.raw: deque[float] = deque(maxlen=width)
        self.clear()

    def clear(self) -> None:
        self.n = 0
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []
        self.noise: deque[float] = deque()
        self.ordered_noise: list[float] = []
        self.draw_lines()

    def level(self, value: float) -> float:
        """The value as y. A first negative value turns the whole series to the raw scale."""
        if self.unit:
            if self.n in (16, 64):
                self.turn_raw(value)
            return value / self.unit
        if value > 0.0:
            return log(value)
        if value == 0.0:  # an interpolated or underflown loss: as low as anything seen
            return self.ordered[0] if self.ordered else -50.0
        self.turn_raw(value)
        return value / self.unit

    def turn_raw(self, value: float) -> None:
        values = sorted(self.raw)
        spread = values[(len(values) * 3) // 4] - values[len(values) // 4] if len(values) >= 4 else 0.0
        self.unit = 10.0 * (spread / 1.35 or abs(value) / 10.0 or 1.0)
        n, raw = self.n, list(self.raw)
        self.clear()
        for v in raw:
            y = v / self.unit
            if self.ordered:
                self.learn(y - self.median())
            self.accept(v, y)
        self.n = max(n, self.n) + 1

    def median(self) -> float:
        o = self.ordered
        half = len(o) >> 1
        return o[half] if len(o) & 1 else 0.5 * (o[half] + o[half - 1])

    def deep(self, value: float) -> bool:
        """Whether a value is far below the latest ones on the linear scale too, where ordinary noise cannot be."""
        values = sorted(self.raw)
        middle = values[len(values) // 2]
        return middle - value > DEEP * (middle - values[0])

    def accept(self, value: float, y: float) -> None:
        """Let a value into the median."""
        recent, ordered = self.recent, self.ordered
        recent.append(y)
        insort(ordered, y)
        self.raw.append(value)
        if len(recent) > self.width:
            del ordered[bisect_left(ordered, recent.popleft())]

    def forget(self) -> None:
        """Drop the oldest value of the median."""
        del self.ordered[bisect_left(self.ordered, self.recent.popleft())]

    def replace(self, levels: list[float]) -> None:
        """Take these levels for the median's window."""
        self.recent = deque(levels)
        self.ordered = sorted(levels)

    def learn(self, residual: float) -> None:
        """Let a residual into the noise that the lines are drawn from."""
        noise, ordered = self.noise, self.ordered_noise
        noise.append(residual)
        insort(ordered, residual)
        self.n += 1
        if len(noise) > self.lines.memory:
            del ordered[bisect_left(ordered, noise.popleft())]
        if self.n & 7 == 0 or self.n < 24:
            self.draw_lines()

    def draw_lines(self) -> None:
        """Place the lines `high`, `low` and `down`, and the tail's own `up` (its start) and `excess` (its mean)."""
        self._draw()
        if self.n == CLEANED == len(self.noise):
            self._clean()

    def _clean(self) -> None:
        """Set aside the largest residuals that lie above the line of all others."""
        largest = self.ordered_noise[-SET_ASIDE:]
        for count in range(SET_ASIDE, 0, -1):
            aside = largest[-count:]
            del self.ordered_noise[-count:]
            self._draw()
            if aside[0] > self.high:
                for residual in aside:
                    self.noise.remove(residual)
                return
            self.ordered_noise.extend(aside)
        self._draw()

    def _draw(self) -> None:
        self.place(*self.ends())

    def ends(self) -> tuple[float, float, list[float], list[float]]:
        """Where the upper and the lower tail of the noise begin, and the residuals in each, in order."""
        o, n = self.ordered_noise, len(self.ordered_noise)
        k = max(4, n // TAIL)
        if n > k:
            return o[-k - 1], o[k], o[-k:], o[:k]
        return (o[-1], o[0], [], []) if n else (0.0, 0.0, [], [])

    def place(self, up: float, down: float, tail: list[float], bottom: list[float]) -> None:
        """Place the lines by the ends of the noise."""
        n, k, at = len(self.ordered_noise), len(tail), self.lines
        excess, deficit = (sum(tail) / k - up, down - sum(bottom) / k) if k else (0.0, 0.0)
        few = 1.0 + FEW / (n + 8.0)
        fade = START * exp(-self.n / 6.0) if self.n < 256 else 0.0
        high = up + few * at.high_tail * excess
        if tail and not self.unit and high < 50.0:
            start = exp(up)
            mean = sum(map(exp, tail)) / k - start
            high = min(high, log(start + few * at.high_linear * exp(HEAVIER * max(0.0, excess - HEAVY)) * mean))
        high = max(at.high_floor * 0.5 * (1.0 + min(few, 3.0)), high)
        self.high, self.low = high + fade, max(at.low_floor, up + at.low_tail * excess) + fade
        self.down = min(-at.down_floor, down - at.down_tail * deficit) - fade
        self.up, self.excess = up, max(excess, 1e-9)

    def factor(self, y: float, median: float) -> float | None:
        """The height of y over the median, as a factor of the values themselves."""
        if not self.unit:
            return exp(min(y - median, 700.0))
        return y / median if median > 0 and y > 0 else None
