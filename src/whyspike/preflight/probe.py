"""What a probe is. One file in `probes/` is one probe; the folder is enumerated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from whyspike.cause import Setup
    from whyspike.preflight.looked import Looked
    from whyspike.types import Finding, Note


class Probe:
    """Measures one thing of a training that has not trained. `probes/first_loss.py` holds `class FirstLoss(Probe)`."""

    words: ClassVar[str]  # what it does, for the progress line

    def measure(self, looked: Looked) -> dict[str, Any]:
        """Fields of `Setup`. Model, optimizer, loader and generators are left as they were; nothing is raised."""
        raise NotImplementedError

    def say(self, setup: Setup) -> Finding | Note | None:
        """What it means, where that is not for one cause to say."""
        return None
