"""What the recorders of all frameworks have in common: the record, where it lies, and what it is diagnosed as."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.errors import UnreadableRun

if TYPE_CHECKING:
    from whyspike.feed import Feed
    from whyspike.record import Recorder
    from whyspike.types import Diagnosis


class Recorded:
    """A callback that records the training which it is given to."""

    HOW = ""  # to have something recorded
    recorder: Recorder | None = None

    @property
    def path(self) -> Path | None:
        """The run folder; None before the first step is recorded."""
        return None if self.recorder is None else self.recorder.path

    def diagnose(self, prove: bool = False) -> Diagnosis:
        """Diagnose what was recorded; with prove=True by replaying it with one thing changed, in this process.

        Raises:
            UnreadableRun: nothing has been recorded.
        """
        if self.recorder is None:
            raise UnreadableRun(f"nothing has been recorded: {self.HOW}")
        return self.recorder.diagnose(prove=prove)


def around(feed: Callable[[], Feed | None], original: Callable[..., Any]) -> Callable[..., Any]:
    """An evaluation of the framework, of which the feed is told; `feed()` gives the one that is there by then."""

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        told = feed()
        if told is None or told.evaluating:
            return original(*args, **kwargs)
        told.enters()
        try:
            return original(*args, **kwargs)
        finally:
            told.leaves()

    return evaluated


def warn(text: str) -> None:
    """Say it where the callback was called from."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def not_recorded(error: Exception) -> str:
    """What is said after an error of our own."""
    return f"whyspike does not record this training ({type(error).__name__}: {error}); the training goes on"
