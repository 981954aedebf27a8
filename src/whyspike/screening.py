"""The trials of all suspicions of a training whose replays are dear: a look at each, then what decides, then the rest.

1. A look: two pairs of a suspicion, unchanged and with the deciding change. Where the change leaves more than half,
   the suspicion is refuted, and nothing more is spent on it. To stop for want of an effect makes no false alarms.
2. What decides, of the first suspicion that stands the look, before the next one gets its look: further pairs, all
   three arms of a pair before the next pair. How many it takes is known beforehand: so many that the smallest p of that
   many pairs passes Holm over all suspicions, and one more. Only that number, the end of the time or the want of an
   effect stops it, never a success: the permutation test keeps its error rate.
3. What only describes: the other changes, from what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from whyspike.allowance import DECIDING, DESCRIBING
from whyspike.cause import Cause
from whyspike.errors import NotReplayable
from whyspike.excess import Measure
from whyspike.judge import ALPHA, PLACEBO_CHANGE, REFUTED, REMOVED, acting, idle_placebo, judge
from whyspike.seams import BASELINE, Intervention
from whyspike.suspect import likely_first
from whyspike.types import ArmName, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.experiment import Experiment
    from whyspike.replays import Pair

LOOK = 2  # pairs that say whether a change does anything; with one, luck would
BESIDE = 3  # pairs of a change that only describes
SPARE = 1  # pairs beyond those without which no p-value is small enough

Progress = Callable[[str, float], None]


@dataclass
class Tried:
    """One suspicion and its trials so far."""

    cause: Cause
    suspicion: Suspicion
    pairs: list[Pair]
    measure: Measure
    interventions: list[Intervention]
    placebo: Intervention | None
    made: list[Trial] = field(default_factory=list)
    n: int = 0  # pairs with all deciding arms
    closed: bool = False  # nothing more is spent on it
    decided: bool = False  # it has the pairs that it gets

    @property
    def deciding(self) -> list[tuple[ArmName, Intervention]]:
        arms: list[tuple[ArmName, Intervention]] = [("baseline", BASELINE), ("intervention", self.interventions[0])]
        if self.placebo is not None:
            arms.append(("placebo", self.placebo))
        return arms


def _promising(tried: Tried) -> bool:
    """Whether the look has what a verdict asks for, but for its chance: then it is decided before the next one."""
    judged = judge(tried.made)
    if judged is None or not judged.removed >= REMOVED:
        return False
    return tried.suspicion.outcome == "likely" and not judged.placebo_change > PLACEBO_CHANGE


def pairs_needed(tests: int) -> int:
    """Pairs without which the smallest p, 2**-n, does not pass Holm over so many causes."""
    return math.ceil(math.log2(max(1, tests) / ALPHA))


class Screening:
    """Tries suspicions in turn. Call it inside `subject.kept()`.

    Args:
        experiment: whose events were measured and profiled.
    """

    def __init__(self, experiment: Experiment, causes: Mapping[str, Cause], progress: Progress | None = None) -> None:
        self.experiment, self.causes, self.allowance = experiment, causes, experiment.allowance
        self._say = progress or (lambda words, done: None)
        self.reasons: dict[str, str] = {}  # by cause: why there are no trials
        self.left_out: dict[str, str] = {}  # by cause: what was not replayed for want of time

    def trials(self, suspicions: Sequence[Suspicion]) -> dict[str, tuple[Trial, ...]]:
        """The trials of every suspicion that is not refuted, by its cause."""
        wanted = likely_first(s for s in suspicions if s.outcome != "refuted")
        event = [t for s in wanted if self.causes[s.cause].window == "event" and (t := self._begin(s)) is not None]
        for tried in event:
            self._guarded(tried, self._look)
            if not tried.closed and _promising(tried):
                self._guarded(tried, lambda t: self._decide(t, len(event)))
        alive = [t for t in event if not t.closed]
        for tried in alive:
            self._guarded(tried, lambda t: self._decide(t, len(event)))
        made = {t.cause.id: tuple(t.made) for t in event if t.made and t.cause.id not in self.reasons}
        epochs = [s for s in wanted if self.causes[s.cause].window == "epoch"]
        for k, suspicion in enumerate(epochs):
            try:
                cause = self.causes[suspicion.cause]
                made[cause.id] = self.experiment.trials(cause, suspicion, self._say, waiting=len(epochs) - 1 - k)
            except NotReplayable as error:
                self.reasons[suspicion.cause] = str(error)
        for tried in alive:
            if tried.cause.id in made:
                self._describe(tried)
                made[tried.cause.id] = tuple(tried.made)
        return made

    # ------------------------------------------------------------------ the parts

    def _begin(self, suspicion: Suspicion) -> Tried | None:
        from whyspike.replay import Draws

        experiment, cause = self.experiment, self.causes[suspicion.cause]
        draw = Draws(experiment.subject)
        interventions = list(cause.interventions(experiment.seen, draw))
        pairs = experiment.pairs_of(cause, suspicion)
        if not pairs or not interventions:
            return None
        recorded = [p for p in pairs if p.redraw is None]
        measure = experiment.measure_of(cause, suspicion.events)
        placebo = cause.placebo(experiment.seen, draw)
        return Tried(
            cause,
            suspicion,
            spread(recorded) + [p for p in pairs if p.redraw is not None],
            measure,
            interventions,
            placebo,
        )

    def _guarded(self, tried: Tried, part: Callable[[Tried], None]) -> None:
        try:
            part(tried)
        except NotReplayable as error:
            self.reasons[tried.cause.id], tried.closed = str(error), True

    def _pair(self, tried: Tried, pair: Pair, arms: Sequence[tuple[ArmName, Intervention]]) -> None:
        for arm, intervention in arms:
            tried.made.append(self.experiment.trial(tried.cause, arm, intervention, pair, tried.measure))

    def _look(self, tried: Tried) -> None:
        self._say(f"replaying {tried.cause.id}: {tried.interventions[0].words}", 0.0)
        pairs = tried.pairs[:LOOK]
        for pair in pairs:
            if not self._fits(DECIDING):
                break
            self._pair(tried, pair, tried.deciding[:2])
        judged = judge(tried.made)
        if judged is None:
            tried.closed = True
            self._too_long(tried)
            return
        if not judged.removed >= REFUTED:  # nan, too: judge says why
            tried.closed = True
            return
        for pair in pairs[: judged.arms[0].n]:
            self._pair(tried, pair, tried.deciding[2:])
            tried.n += 1
        placebo = tried.placebo
        if placebo is not None and placebo.must_act:
            tried.made = acting(tried.made)
            if not any(t.arm == "placebo" for t in tried.made) and not tried.suspicion.identity:
                raise NotReplayable(idle_placebo(placebo.words))

    def _decide(self, tried: Tried, tests: int) -> None:
        if tried.decided:
            return
        tried.decided = True
        most = min(len(tried.pairs), pairs_needed(tests) + SPARE)
        while tried.n < most and self._fits(len(tried.deciding)):
            self._say(f"replaying {tried.cause.id}: pair {tried.n + 1} of {most}", tried.n / most)
            self._pair(tried, tried.pairs[tried.n], tried.deciding)
            tried.n += 1
            judged = judge(tried.made)
            if judged is None or not judged.removed >= REFUTED:
                return
        if tried.placebo is not None and tried.placebo.must_act:
            tried.made = acting(tried.made)
        if len(tried.pairs) == 1 and tried.placebo is not None:
            self._rank(tried)
        elif tried.n < most:
            self._too_long(tried)

    def _rank(self, tried: Tried) -> None:
        """A single event among continuations with the placebo."""
        from whyspike.experiment import placebo_draws

        assert tried.placebo is not None
        pair, draws = tried.pairs[0], placebo_draws(tried.suspicion)
        if not self._fits(draws):
            self.left_out[tried.cause.id] = (
                f"how often a placebo would do as much to the one event that there is; the {draws} replays take about "
                f"{draws * self.experiment.per_replay:.0f} s more; prove(..., full=True) makes them"
            )
            return
        for k in range(draws):
            self._say(f"replaying {tried.cause.id}: placebo draw {k + 1} of {draws}", k / draws)
            drawn = replace(pair, number=pair.number + 1 + k, redraw=k)
            self._pair(tried, drawn, [("placebo", tried.placebo)])

    def _describe(self, tried: Tried) -> None:
        for intervention in tried.interventions[1:]:
            chosen = tried.pairs[: min(BESIDE, tried.n)]
            if not chosen or not self._fits(len(chosen), DESCRIBING):
                return
            self._say(f"replaying {tried.cause.id}: {intervention.words}", 0.0)
            made = len(tried.made)
            try:
                for pair in chosen:
                    self._pair(tried, pair, [("intervention", intervention)])
            except NotReplayable:
                del tried.made[made:]

    # ------------------------------------------------------------------ time

    def _fits(self, replays: int, share: float = 1.0) -> bool:
        return self.allowance.fits(replays * self.experiment.per_replay, share)

    def _too_long(self, tried: Tried) -> None:
        left = (len(tried.pairs) - tried.n) * len(tried.deciding)
        self.left_out[tried.cause.id] = (
            f"{len(tried.pairs) - tried.n} of {len(tried.pairs)} pairs of replays; they would take about "
            f"{left * self.experiment.per_replay:.0f} s more; prove(..., full=True) makes them"
        )


def spread(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in an order whose every beginning is spread over the run: a half, then the quarters, and so on."""
    order: dict[int, None] = {}
    parts = 1
    while len(order) < len(pairs):
        order.update(dict.fromkeys(int(k) for k in np.linspace(0, len(pairs), 2 * parts + 1)[1:-1:2]))
        parts *= 2
        if parts > 2 * len(pairs):
            order.update(dict.fromkeys(range(len(pairs))))
    return [pairs[k] for k in order]
