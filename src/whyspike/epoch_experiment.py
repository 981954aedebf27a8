"""The experiment on whole epochs: baseline, intervention and placebo, from one epoch boundary, in pairs.

For causes that act through an epoch (`Cause.window` is "epoch"): what they make is no spike at a step but a pattern of
all steps. A pair is one boundary; the excess is the amplitude, in the replayed epoch, of the pattern that the other
epochs of the run have in common (excess "pattern", or "rise").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import process_time

import numpy as np

from whyspike.allowance import DECIDING, FEW_PAIRS, Allowance, too_long
from whyspike.cause import Cause, Observation
from whyspike.epochs import EpochWindow
from whyspike.errors import NotReplayable
from whyspike.excess import Measure, log_rise, pattern_excess
from whyspike.pattern import Pattern, pattern, trend_over
from whyspike.replay import Replayed, Subject
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Suspicion, Trial

PAIRS = 12  # 2**-12 = 2e-4 for the smallest p, so that Holm over a dozen causes can still reach .01
PROFILE_PAIRS = 3  # for the interventions beside the deciding one: their numbers describe, they do not decide

Progress = Callable[[str, float], None]


class EpochExperiment:
    """The replays of the epochs of one subject. A replay that two causes ask for is made once.

    What is drawn at the order seam is the same for every cause, so that equal words are equal replays.

    Args:
        most: pairs at most.
        allowance: of processor time; without a limit when not given.
    """

    def __init__(self, subject: Subject, *, most: int = PAIRS, allowance: Allowance | None = None) -> None:
        self.epochs, self.most = subject.epochs, most
        self.allowance = allowance or Allowance(math.inf)
        self._replays_s = 0.0
        self._done: dict[tuple[int, str, str, int], Replayed] = {}
        self._by_samples: dict[tuple[int, str, str, int], list[float]] = {}
        self._patterns: dict[tuple[int, int, int, str], Pattern | None] = {}

    def trials(
        self,
        cause: Cause,
        suspicion: Suspicion,
        seen: Observation,
        progress: Progress | None = None,
        *,
        waiting: int = 0,
    ) -> tuple[Trial, ...]:
        """All trials that the cause asks for; none where no epoch can be replayed. Call it inside `subject.kept()`.

        Args:
            waiting: causes that are tried after this one.

        Raises:
            NotReplayable: there is no time for it.
        """
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
        measure = cause.measure or "pattern"
        patterns = {w.epoch: self._pattern(w, windows, seen, measure) for w in windows}
        windows = [w for w in windows if patterns[w.epoch] is not None]
        windows = self._affordable(windows, min(len(arms), DECIDING), waiting)
        made: list[Trial] = []
        for done, (arm, intervention) in enumerate(arms):
            if progress:
                progress(f"replaying whole epochs, {cause.id}: {intervention.words}", done / len(arms))
            beside = arm == "intervention" and done > 1
            chosen = windows[:: -(-len(windows) // PROFILE_PAIRS)] if beside and windows else windows
            if beside and not self.allowance.fits(len(chosen) * self._per_replay):
                continue
            for window in chosen:
                found = patterns[window.epoch]
                assert found is not None
                made.append(self._trial(cause, arm, intervention, window, seen, events[0].id, found))
        return tuple(made)

    def replay(self, window: EpochWindow, intervention: Intervention) -> Replayed:
        """Replay an epoch, or take what was replayed before with the same words."""
        key = _key(window, intervention)
        if key not in self._done:
            began = process_time()
            self._done[key] = self.epochs.replay(window, intervention)
            self._replays_s += process_time() - began
        return self._done[key]

    @property
    def _per_replay(self) -> float:
        return self._replays_s / max(1, len(self._done))

    def _affordable(self, windows: Sequence[EpochWindow], arms: int, waiting: int) -> list[EpochWindow]:
        """As many of the epochs as there is time for, spread over the run. The first one tells what an epoch takes."""
        if not windows or not math.isfinite(self.allowance.whole):
            return list(windows)
        self.replay(windows[0], BASELINE)
        n = self.allowance.pairs(len(windows), arms, self._per_replay, waiting)
        if n < min(FEW_PAIRS, len(windows)):
            raise NotReplayable(too_long(len(windows) * arms * self._per_replay))
        return [windows[int(k)] for k in np.linspace(0, len(windows) - 1, n)]

    def by_samples(self, window: EpochWindow, intervention: Intervention) -> list[float]:
        """What the batches of a replayed epoch cost by their samples alone."""
        key = _key(window, intervention)
        if key not in self._by_samples:
            made = self.replay(window, intervention)
            self._by_samples[key] = self.epochs.by_samples(window, made.order)
        return self._by_samples[key]

    def _pattern(
        self, window: EpochWindow, windows: Sequence[EpochWindow], seen: Observation, measure: Measure
    ) -> Pattern | None:
        """The pattern of the other epochs: of those about as old as the ones that are replayed, if they are enough."""
        lived = range(windows[0].epoch, windows[-1].epoch + 1)
        key = (window.epoch, lived.start, lived.stop, measure)
        if key not in self._patterns:
            trend = measure == "rise"
            found = pattern(seen.run, without=[window.epoch], epochs=lived, trend=trend)
            self._patterns[key] = found or pattern(seen.run, without=[window.epoch], trend=trend)
        return self._patterns[key]

    def _trial(
        self,
        cause: Cause,
        arm: ArmName,
        intervention: Intervention,
        window: EpochWindow,
        seen: Observation,
        event: str,
        found: Pattern,
    ) -> Trial:
        made = self.replay(window, intervention)
        onset = made.event_step - made.first_step
        before = _before(made)
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
                found,
                reported=made.reported[onset:],
                drift=0.0 if cause.measure == "rise" else self._drift(window, made, seen),
                beside=self.by_samples(window, intervention) if cause.measure == "rise" else (),
            ),
            reproduced=made.reproduced if arm == "baseline" else None,
            noise=made.noise if arm == "baseline" else None,
        )

    def _drift(self, window: EpochWindow, made: Replayed, seen: Observation) -> float:
        """By how much the log loss of the measured epoch changed apart from the pattern.

        The trend of the run, and what the probe of this replay gained or lost beside that of the unchanged one. The
        probe's own drift would not do: its samples were seen more lately than those of a batch, and learn faster.
        """
        own, usual = _probe_drift(made), _probe_drift(self.replay(window, BASELINE))
        trend = trend_over(seen.run, window.epoch)
        return own if math.isnan(trend) else trend + own - usual


def _key(window: EpochWindow, intervention: Intervention) -> tuple[int, str, str, int]:
    return window.epoch, intervention.words, str(getattr(intervention, "where", "")), intervention.epochs


def _before(made: Replayed) -> float:
    """The probe loss before the measured epoch."""
    onset = made.event_step - made.first_step
    return made.state[onset - 1] if onset else made.state_before


def _probe_drift(made: Replayed) -> float:
    return log_rise(made.state[-1], _before(made))
