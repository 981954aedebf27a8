"""Batches that go from the loader to the loop without a look, and are noted on their way.

Between two batches that a recorder has to look at no line of Python of ours runs for one: `map` draws a number, then
the batch, and `dict.setdefault` notes the batch under the number and hands it out. The recorder reads them later, many
at a time. What an ordinary step costs is the Python that runs in it, several times as much as by itself, for the
training has pushed its code out of the caches.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator
from typing import Any


class Handout:
    """What was handed out and not yet read. Every batch has a number of its own.

    A number that is missing in `noted` was drawn for a batch in whose place the loader raised.
    """

    __slots__ = ("_begin", "_end", "_given", "_next", "_numbers", "_rows", "losses", "noted")

    def __init__(self) -> None:
        self.noted: dict[int, Any] = {}  # the batches by their number
        self.losses: list[float] = []  # of the updates that were made, each with the one batch that was drawn for it
        self._numbers: list[int] = []  # that may still be given, and before them those that were
        self._given: Iterator[int] = iter(())
        self._rows: deque[Any] = deque()
        self._begin = self._end = 0  # the numbers of the last stretch
        self._next = 0  # the number after the last that was read

    def batches(self, source: Iterator[Any], n: int, rows: deque[Any]) -> Iterator[Any]:
        """The next batches of a loader's iterator, at most `n`. What was handed out before has been read.

        Args:
            rows: gets their dataset indices, in the same order.
        """
        self.stop()
        self._begin, self._rows = self._next, rows
        self._numbers = list(range(self._begin, self._begin + n))
        self._given = iter(self._numbers)
        return map(self.noted.setdefault, self._given, source)

    def stop(self) -> None:
        """No further batch is handed out so."""
        if self._numbers:
            self._end = self._numbers[-1] + 1 - operator.length_hint(self._given)
            self._numbers.clear()

    def ended(self) -> int:
        """How many were drawn, with those in whose place the loader raised; all of them have been read."""
        self.stop()
        self._pass_over(self._end)
        return self._next - self._begin

    def read(self, number: int) -> tuple[Any, Any]:
        """A batch, and its dataset indices as the sampler handed them out; none at all where they are not known.

        To be asked in the order of the numbers.
        """
        self._pass_over(number)
        self._next += 1
        return self.noted.pop(number), self._rows.popleft() if self._rows else ()

    def _pass_over(self, number: int) -> None:
        """Let go of the indices for which the loader raised."""
        for _ in range(min(number - self._next, len(self._rows))):
            self._rows.popleft()
        self._next = max(self._next, number)

    def forget(self) -> None:
        """Read nothing of it any more."""
        self.stop()
        self.noted.clear()
        self.losses.clear()
