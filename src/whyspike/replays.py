"""The replays of one subject: what two causes ask for is made once, and of a dear replay no more than is asked.

Where a replay is dear (`Allowance.thrifty`), a part of an unchanged one is a replay of that part, one with a change
that acts from the event on begins there, and all of them end once the event is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np

from whyspike.excess import area_above
from whyspike.replay import HORIZON, Replayed, Subject, Window
from whyspike.seams import BASELINE, Intervention
from whyspike.types import Event

SHED = 0.9  # of an event's area, after which a dear replay ends
LEAST_REACH = 8  # steps after the event that it runs in any case


@dataclass(frozen=True)
class Pair:
    """One event's snapshot with one continuation; `redraw` None is the recorded one."""

    number: int
    event: Event
    window: Window
    redraw: int | None
    whole: bool = True  # from the capsule on; else from some steps before the event


class Replays:
    """Replays pairs. Call it inside `subject.kept()`.

    Args:
        lead: steps before an event at which its replays begin.
        thrifty: a replay is dear.
    """

    def __init__(self, subject: Subject, *, lead: int, thrifty: bool) -> None:
        self.subject, self.lead, self.thrifty = subject, lead, thrifty
        self.reach = HORIZON  # steps after an event that a replay of it runs
        self.unchanged: dict[Path, list[Replayed]] = {}  # by the capsule that they begin with
        self.n, self.seconds = 0, 0.0
        self._done: dict[tuple[object, str, str], Replayed] = {}

    def forget(self, lead: int) -> None:
        """The events are others, and begin elsewhere: so do their replays. Dear ones are kept for their parts."""
        self.lead = lead
        if not self.thrifty:
            self._done.clear()

    def shorten(self) -> None:
        """Let all further replays end where the events are over, as the unchanged ones show."""
        if self.thrifty:
            self.reach = reach(self.all_unchanged)

    @property
    def all_unchanged(self) -> list[Replayed]:
        """Every unchanged replay of recorded steps, where replays are dear."""
        return [made for many in self.unchanged.values() for made in many]

    @property
    def per_replay(self) -> float:
        """Processor time of one replay, the mean of those that were made; 0 before the first."""
        return self.seconds / max(1, self.n)

    def ready(self, pair: Pair) -> Pair:
        """The pair with a window that begins where its replays do."""
        if pair.whole or not self.thrifty:
            return pair
        return replace(pair, window=self.subject.begun(pair.window, self.lead))

    def of(self, pair: Pair, intervention: Intervention, horizon: int | None = None) -> Replayed:
        """The replay of a pair: made, or what was made before with the same words on the same steps."""
        horizon = self.reach if horizon is None else horizon
        pair = self.ready(pair)
        # One event of two suspicions is two pairs, each with draws of its own: dear, where a replay is.
        same = (pair.window.path, pair.window.event_step, pair.redraw) if self.thrifty else pair.number
        key = (same, intervention.words, str(getattr(intervention, "where", "")))
        if key not in self._done or (self.thrifty and self._ends(pair.window, self._done[key], horizon)):
            began = process_time()
            known = self._known(pair, horizon) if self.thrifty and intervention is BASELINE else None
            made = known or self._run(pair, intervention, horizon)
            if known is None and (self.thrifty or horizon == HORIZON):
                self.n, self.seconds = self.n + 1, self.seconds + process_time() - began
            if self.thrifty and intervention is BASELINE and pair.redraw is None:
                self.unchanged.setdefault(_capsule_of(pair.window), []).append(made)
            self._done[key] = made
        return self._done[key].until(horizon)

    def _run(self, pair: Pair, intervention: Intervention, horizon: int) -> Replayed:
        """Run a pair; where time is short, what an intervention leaves as it is comes from the unchanged replay."""
        window, subject = pair.window, self.subject
        control = window.event_step if window.control_step is None else window.control_step
        if not self.thrifty:
            return subject.replay(window, intervention, redraw=pair.redraw, horizon=horizon)
        if intervention is BASELINE:
            return subject.replay(window, intervention, redraw=pair.redraw, horizon=horizon, hold=control)
        base = self._known(replace(pair, redraw=None), 0)
        acts_late = getattr(intervention, "where", "") in ("event", "control", "onward", 0)
        late = subject.held(window, control) if acts_late and control < window.event_step else None
        if base is None or late is None:
            return subject.replay(window, intervention, redraw=pair.redraw, horizon=horizon)
        made = subject.replay(late, intervention, redraw=pair.redraw, horizon=horizon)
        n = made.first_step - base.first_step
        return replace(
            made,
            first_step=base.first_step,
            reported=base.reported[:n] + made.reported,
            state=base.state[:n] + made.state,
            recorded=base.recorded[:n] + made.recorded,
            state_before=base.state_before,
        )

    def _ends(self, window: Window, made: Replayed, horizon: int) -> bool:
        """Whether a replay of this window ends before so many steps after the event, which the record has."""
        last = min(made.event_step + horizon, self.subject.capsule(window.path).steps[-1].step)
        return made.first_step + len(made.reported) <= last

    def _known(self, pair: Pair, horizon: int) -> Replayed | None:
        """The unchanged replay of a pair, as a part of one that was made: it is bitwise the same."""
        steps = [s.step for s in self.subject.capsule(pair.window.path).steps if s.batches]
        if pair.redraw is not None or not steps:
            return None
        last = min(pair.window.event_step + horizon, steps[-1])
        for made in self.unchanged.get(_capsule_of(pair.window), ()):
            k, n = steps[0] - made.first_step, last + 1 - made.first_step
            if 0 <= k < n <= len(made.reported):
                return replace(
                    made,
                    first_step=steps[0],
                    event_step=pair.window.event_step,
                    reported=made.reported[k:n],
                    state=made.state[k:n],
                    recorded=made.recorded[k:n],
                    state_before=made.state[k - 1] if k else made.state_before,
                )
        return None


def reach(replays: Iterable[Replayed]) -> int:
    """Steps after the event within which nine tenths of the area of every event lie, in its unchanged replay."""
    needed = [LEAST_REACH]
    for made in replays:
        level = level_before(made)
        rises = [area_above([v], level) for v in made.excess_state[onset_of(made) :]]
        whole = np.cumsum(rises)
        if len(whole) and whole[-1] > 0:
            needed.append(int(np.searchsorted(whole, SHED * whole[-1])))
    return min(HORIZON, max(needed))


def _capsule_of(window: Window) -> Path:
    """The capsule that was recorded; a window that begins later has a name made of its name."""
    return Path(str(window.path).split("#")[0])


def onset_of(made: Replayed) -> int:
    """The position of the event's step in the replay."""
    return made.event_step - made.first_step


def level_before(made: Replayed) -> float:
    """Probe loss before the event: the median of the window's steps before it, and of the capsule's own state."""
    return float(np.median([made.state_before, *made.state[: onset_of(made)]]))
