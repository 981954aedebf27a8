"""The experiment on whole epochs: baseline, intervention and placebo, from one epoch boundary, in pairs.

For causes that act through an epoch (`Cause.window` is "epoch"): what they make is no spike at a step but a pattern of
all steps. A pair is one boundary; the excess is the amplitude, in the replayed epoch, of the pattern that the other
epochs of the run have in common (excess "pattern").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from whyspike.cause import Cause, Observation
from whyspike.epochs import Epochs, EpochWindow
from whyspike.excess import pattern_excess
from whyspike.pattern import Pattern, pattern
from whyspike.replay import Replayed, Subject
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Suspicion, Trial

PAIRS = 12  # 2**-12 = 2e-4 for the smallest p, so that Holm over a dozen causes can still reach .01
PROFILE_PAIRS = 4  # for the interventions beside the deciding one: their numbers describe, they do not decide

Progress = Callable[[str, float], None]


class EpochExperiment:
    """The replays of the epochs of one subject. A replay that two causes ask for is made once.

    Args:
        most: pairs at most.
    """

    def __init__(self, subject: Subject, *, most: int = PAIRS) -> None:
        self.epochs, self.most = Epochs(subject), most
        self._done: dict[tuple[int, str, str, int], Replayed] = {}
        self._patterns: dict[int, Pattern | None] = {}

    def trials(
        self, cause: Cause, suspicion: Suspicion, seen: Observation, progress: Progress | None = None
    ) -> tuple[Trial, ...]:
        """All trials that the cause asks for; none where no epoch can be replayed. Call it inside `subject.kept()`."""
        draw = self.epochs.subject.draw
        placebo = cause.placebo(seen, draw)
        arms: list[tuple[ArmName, Intervention]] = [
            ("baseline", BASELINE),
            *(("intervention", i) for i in cause.interventions(seen, draw)),
            *([("placebo", placebo)] if placebo is not None else []),
        ]
        following = max(i.epochs for _, i in arms)
        events = [seen.event(i) for i in suspicion.events]
        first, last = min(e.step for e in events), max(e.last_step for e in events)
        windows = self.epochs.windows(first, last, self.most, following=following)
        windows = [w for w in windows if self._pattern(w, seen) is not None]
        made: list[Trial] = []
        for done, (arm, intervention) in enumerate(arms):
            if progress:
                progress(f"replaying whole epochs, {cause.id}: {intervention.words}", done / len(arms))
            beside = arm == "intervention" and done > 1
            chosen = windows[:: -(-len(windows) // PROFILE_PAIRS)] if beside and windows else windows
            made += [self._trial(cause, arm, intervention, w, seen, events[0].id) for w in chosen]
        return tuple(made)

    def replay(self, window: EpochWindow, intervention: Intervention) -> Replayed:
        """Replay an epoch, or take what was replayed before with the same words."""
        key = (window.epoch, intervention.words, str(getattr(intervention, "where", "")), intervention.epochs)
        if key not in self._done:
            self._done[key] = self.epochs.replay(window, intervention)
        return self._done[key]

    def _pattern(self, window: EpochWindow, seen: Observation) -> Pattern | None:
        """The pattern of the other epochs."""
        if window.epoch not in self._patterns:
            self._patterns[window.epoch] = pattern(seen.run, without=[window.epoch])
        return self._patterns[window.epoch]

    def _trial(
        self, cause: Cause, arm: ArmName, intervention: Intervention, window: EpochWindow, seen: Observation, event: str
    ) -> Trial:
        made = self.replay(window, intervention)
        found = self._pattern(window, seen)
        assert found is not None
        onset = made.event_step - made.first_step
        before = made.state[onset - 1] if onset else made.state_before
        run = seen.run
        rows = (run.step >= window.first_step - 64) & (run.step < window.first_step) & np.isfinite(run.loss)
        return Trial(
            cause=cause.id,
            arm=arm,
            words=intervention.words,
            event=event,
            pair=window.epoch,
            backend="snapshot",
            first_step=made.first_step,
            event_step=made.event_step,
            reported=made.reported,
            state=made.state,
            reported_reference=float(np.median(run.loss[rows])) if rows.any() else math.nan,
            state_reference=before,
            excess=pattern_excess(
                found, reported=made.reported[onset:], state_before=before, state_after=made.state[-1]
            ),
            reproduced=made.reproduced if arm == "baseline" else None,
            noise=made.noise if arm == "baseline" else None,
        )
