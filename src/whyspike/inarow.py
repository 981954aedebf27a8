"""Losses in a row that are high together, though none of them is high enough alone.

Where the weights were damaged the loss stays up for a while. A value above the start of the tail says as much against
chance as its excess in units of the tail's mean, because the tail is exponential; one that follows such a value says
besides how seldom that happens, minus the log of its share. The share is learnt from the run: in white noise one
value in sixteen, in a series that wanders nearly all of them. What rows usually add up to is learnt, too, because the
values of a wandering series are not independent. So wandering is not taken for damage.
"""

from __future__ import annotations

from math import log

from whyspike.noise import Channel

LINE = 12.0  # times what a row usually adds up to, 1 in white noise (python benchmarks/detectors.py --calibrate)
FLOOR = 0.4  # nats, their mean: log 1.5, as for a single value
LEAST = 64  # residuals before the start of the tail is known well enough
MEMORY = 1024  # steps over which the share is learnt
ROWS = 32  # over which it is learnt what they add up to
USUAL, FEW = 3.0, 4  # what is taken for it before the first, and how many rows that counts for
PRIOR = 4.0  # so many pairs of each kind before the first: a share of one half


class InARow:
    """The row that is going on, and how often one high value follows another."""

    __slots__ = (
        "_count",
        "_high",
        "_mean",
        "_pairs",
        "_rows",
        "_square",
        "_sum",
        "_surprise",
        "_was",
        "going",
        "level",
        "onset",
        "peak",
    )

    def __init__(self) -> None:
        self._high = self._pairs = 0.0  # high values, and those of them that follow one
        self._mean, self._square, self._rows = USUAL, 2.0 * USUAL**2, FEW  # of what rows add up to
        self._was = False
        self.going = False  # whether a value that is not high would change anything here
        self.clear()

    def clear(self) -> None:
        """Forget the row, not what was learnt."""
        self.onset = -1  # its first step; -1 without one
        self.peak = self.level = 0.0  # its highest residual, and the y of that
        self._surprise = self._sum = 0.0
        self._count = 0

    def update(self, channel: Channel, step: int, residual: float, y: float, score: float, *, full: bool) -> bool:
        """Take in a value below the high line. Returns whether the row is out of the ordinary.

        Args:
            score: the residual that a full batch of the same standing would have.
            full: of a full-size batch; only these teach.
        """
        high = score > channel.up
        if full:
            if high:
                keep = 1.0 - 1.0 / MEMORY
                self._high = self._high * keep + 1.0
                self._pairs = self._pairs * keep + self._was
            self._was = high
        self.going = self._was
        if not high or len(channel.noise) < LEAST:
            if full and self.onset >= 0:
                self._rows = min(self._rows + 1, ROWS)
                self._mean += (self._surprise - self._mean) / self._rows
                self._square += (self._surprise**2 - self._square) / self._rows
            self.clear()
            return False
        self.going = True
        surprise = (score - channel.up) / channel.excess
        if self.onset < 0:
            self.onset, self.peak, self.level = step, residual, y
            self._surprise, self._sum, self._count = surprise, score, 1
            return False
        self._surprise += surprise - log((self._pairs + PRIOR) / (self._high + 2.0 * PRIOR))
        self._sum += score
        self._count += 1
        if residual > self.peak:
            self.peak, self.level = residual, y
        usual = self._square / (2.0 * self._mean)  # the mean, were they exponential; more where long rows are frequent
        return self._surprise > LINE * max(1.0, usual) and self._sum > FLOOR * self._count
