"""How long the proof of a run may take, and what of it is replayed when not everything fits.

The proof of an event may take a quarter of the training's time, and half a minute in any case; that of many events no
more than four of them, the whole training. It is counted in the processor time of this process, training and proof
alike, so that a busy machine changes neither the share nor the verdicts. What decides a verdict comes first; what only
describes is left out first.
"""

from __future__ import annotations

import math
from time import process_time

SHARE = 0.25  # of the training's time, for each event
FREE_S = 30.0  # for each event in any case
MOST_EVENTS = 4  # that are counted
HEAVY_S = 60.0  # of training: from there on only what a verdict needs is replayed before all else
PROBING = 0.5  # of a step's time, that the probe after it may take in such a training
STATES, PROFILES = 0.3, 0.55  # of the allowance, spent when the events and then their profiles are cut short
REPRODUCING = 0.15  # of the allowance, that running recorded windows once more may take
FIRST_PROFILE = 0.85  # of the allowance, where a replay is dear: without any profile some causes have no verdict
DESCRIBING = 0.8  # of the allowance, spent when what only describes is left out
LEAST_PROBE = 64  # samples; below it the network's own loss is too noisy to tell a tenth
DECIDING = 3  # arms that decide: baseline, the first intervention, placebo
FEW_PAIRS = 2  # fewer say nothing about chance at all


class Allowance:
    """The processor time of one proof. It begins when it is made.

    Args:
        training_s: processor time of the training; infinite for a proof without a limit.
        events: that are to be proven.
        most_s: no more than this, where a user said so.
    """

    def __init__(self, training_s: float, events: int = 1, most_s: float = math.inf) -> None:
        self.training_s, self._most_s = training_s, most_s
        self._began = process_time()
        self.of_events(events)

    def of_events(self, events: int) -> None:
        """How many events there are, once that is known."""
        share = max(FREE_S, SHARE * self.training_s)
        self.whole = min(self._most_s, share * max(1, min(events, MOST_EVENTS)))

    @property
    def thrifty(self) -> bool:
        """Whether a replay costs so much that each is asked for what a verdict needs of it, and no more."""
        return math.isfinite(self.whole) and self.training_s >= HEAVY_S

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return process_time() - self._began

    @property
    def left(self) -> float:
        """Seconds; negative where more was spent than was allowed."""
        return self.whole - self.spent

    def fits(self, seconds: float, share: float = 1.0) -> bool:
        """Whether so many more seconds stay within a share of the allowance."""
        return self.spent + seconds <= share * self.whole

    def pairs(self, wanted: int, arms: int, per_replay: float, waiting: int) -> int:
        """How many pairs one cause may replay; below `FEW_PAIRS` it had better not begin.

        Args:
            wanted: pairs that there are.
            arms: that decide; all pairs are replayed with each.
            per_replay: seconds of one replay.
            waiting: causes that come after this one, which want their part of what is left.
        """
        if not math.isfinite(self.whole) or per_replay <= 0:
            return wanted
        share = int(self.left / (waiting + 1) / (arms * per_replay))
        return max(0, min(wanted, share))


def too_long(seconds: float) -> str:
    """Why something is not replayed, and how to have it."""
    whole = (
        f"its replays would take about {seconds:.0f} s, and the proof of an event may take a quarter of the training's"
    )
    return f"{whole}; prove(..., full=True) makes them"
