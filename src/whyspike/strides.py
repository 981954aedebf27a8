"""How often a costly signal is measured: every so many steps, fixed by the step's number, and only ever doubled.

A signal that takes more than its share of the training's time is measured half as often from then on, and the record
says so. So a record of a fast step and one of a slow step differ in how dense a signal is, never in what it means.
"""

from __future__ import annotations

from statistics import median

MIN_MEASURED = 3  # measurements before a cost is believed; the very first one also pays for imports and allocation


class Stride:
    """The stride of one signal.

    Args:
        name: of the signal.
        every: the first stride, in steps.
        budget: the share of the training's time that it may take, e.g. .004.
    """

    def __init__(self, name: str, every: int, budget: float) -> None:
        self.name, self.every, self.budget = name, every, budget
        self._costs: list[float] = []
        self._skipped = 0
        self._news = False  # a cost that adapt has not seen
        self.total_s = 0.0  # spent on this signal so far

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def next_after(self, step: int) -> int:
        return (step // self.every + 1) * self.every

    def spent(self, seconds: float) -> None:
        """Note what one measurement took."""
        self.total_s += seconds
        if not self._skipped:
            self._skipped = 1
            return
        self._costs.append(seconds)
        self._news = True
        if len(self._costs) > 16:
            del self._costs[0]

    def adapt(self, seconds_per_step: float) -> int:
        """Double the stride until the signal fits its budget.

        Returns:
            The factor by which the stride grew; 1 when it stays.
        """
        if not self._news or seconds_per_step <= 0:
            return 1
        self._news = False
        share = median(self._costs) / (self.every * seconds_per_step)
        if len(self._costs) < MIN_MEASURED and share < 4 * self.budget:  # what is far too dear is seen at once
            return 1
        factor, cost = 1, median(self._costs)
        while cost / (self.every * factor) > self.budget * seconds_per_step and self.every * factor < 1 << 16:
            factor *= 2
        self.every *= factor
        if factor > 1:
            self._costs.clear()
        return factor


def counts(n: int, first: int = 8) -> bool:
    """Whether the n-th occurrence (from 0) of something is looked at: the first few, then 8, 16, 32, ..."""
    return n < first or n & (n - 1) == 0
