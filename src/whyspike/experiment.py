"""The experiment: baseline, intervention and placebo, replayed in pairs.

A pair is one event's snapshot with one continuation. Distinct events come first; where there are fewer than eight,
further continuations are drawn (other training samples after the event). A single event is ranked against at least 99
placebo continuations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property

import numpy as np

from whyspike.allowance import DECIDING, FEW_PAIRS, FIRST_PROFILE, PROFILES, STATES, Allowance, too_long
from whyspike.cause import Cause, Observation
from whyspike.epoch_experiment import EpochExperiment
from whyspike.errors import NotReplayable
from whyspike.everychange import every_change
from whyspike.excess import Measure, excess, jump
from whyspike.judge import REMOVED, acting, idle_placebo, judge
from whyspike.periods import occurrences
from whyspike.profile import Profile, Profiler, enough
from whyspike.replay import HORIZON, Draws, Replayed, Subject, Window
from whyspike.replays import Pair, Replays, level_before, onset_of
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Event, Suspicion, Trial

TYPICAL = 2  # moments of an event whose heights are measured where time is short
PAIRS = 12  # 2**-12 = 2e-4 for the smallest p, so that Holm over a dozen causes can still reach .01
LEAST_PAIRS = 8
PROFILE_PAIRS = 6  # for the interventions beside the deciding one: their numbers describe, they do not decide
PLACEBO_DRAWS = 99  # for a single event: the smallest p is 1 / 100
MOST_LATE = 3  # steps between a damaging step and the first plotted loss above the line
RISE = 14  # steps that the network may rise before a spike of its own is seen, in a probe every 4 steps
LEAD = 12  # steps before an event at which its replays begin: what sets it off may lie 10 steps before (experiment Q2)
OTHER = 0.1  # relative; a replay whose losses differ by more is that of another training, and has no height to tell
VISIBLE = 1.1  # a state factor below it is no damage (the contract's line between cosmetic and damaging)

Progress = Callable[[str, float], None]


class Experiment:
    """The replays of one subject. A replay that two causes ask for is made once.

    Args:
        most: pairs at most.
        full: replay every change that there is, also where a verdict does not need it.
        allowance: of processor time; without a limit when not given.
    """

    def __init__(
        self,
        subject: Subject,
        seen: Observation,
        *,
        most: int = PAIRS,
        full: bool = False,
        allowance: Allowance | None = None,
    ) -> None:
        self.subject, self.seen, self.most, self.full = subject, seen, most, full
        self.allowance = allowance or Allowance(math.inf)
        self.thrifty = self.allowance.thrifty and not full
        # until the events are where they begin
        self.replays = Replays(subject, lead=LEAD + RISE, thrifty=self.thrifty)
        self._pairs: dict[tuple[str, ...], list[Pair]] = {}
        self._epochs: EpochExperiment | None = None

    # ------------------------------------------------------------------ which pairs

    def pairs(self, event_ids: Sequence[str], cause: Cause | None = None) -> list[Pair]:
        """The pairs for some events: recorded continuations of distinct events, then redrawn ones.

        Args:
            cause: whose moments are replayed in place of the events' own steps, where it names some.
        """
        events = [self.seen.event(i) for i in event_ids]
        moments = cause.moments(self.seen, events) if cause is not None else None
        key = (*event_ids, *(f"at {step}" for step in moments or ()))
        if key not in self._pairs:
            self._pairs[key] = list(self._make_pairs(events, moments))
        return self._pairs[key]

    def _make_pairs(self, events: Sequence[Event], moments: Sequence[int] | None) -> Iterator[Pair]:
        base, whole = 1000 * len(self._pairs), moments is not None
        windows: list[tuple[Event, Window]] = []
        steps = [(event, int(step)) for event in events for step in occurrences(self.seen.run, event)]
        if moments is not None:
            steps = [(min(steps, key=lambda at: abs(at[1] - m))[0], m) for m in moments] if steps else []
        else:
            steps = [(event, step) for event, step in steps if not event.is_wave]  # EpochExperiment replays those
        # Spikes and dips of one place in the epoch are two events of the same steps; a step counts once.
        steps = list({step: (event, step) for event, step in reversed(steps)}.values())[::-1]
        for event, step in steps:
            try:
                window = self.subject.window(step, before=moments is not None)
            except NotReplayable:
                continue
            # Where time is short, a replay that is never made need not begin where it would.
            begun = window if whole or event.period or self.thrifty else self.subject.begun(window, self.replays.lead)
            windows.append((event, begun))
        # Early epochs differ most from the rest: keep an even spread over the run when there are too many.
        if len(windows) > self.most:
            windows = [windows[int(k)] for k in np.linspace(0, len(windows) - 1, self.most)]
        if not windows:
            return
        number = base
        for event, window in windows:
            yield Pair(number, event, window, None, whole=whole or bool(event.period))
            number += 1
        if len(windows) == 1:
            return
        redraw = 0
        while number - base < LEAST_PAIRS:
            event, window = windows[(number - base) % len(windows)]
            yield Pair(number, event, window, redraw, whole=whole or bool(event.period))
            number, redraw = number + 1, redraw + 1

    # ------------------------------------------------------------------ replays

    def replay(self, pair: Pair, intervention: Intervention, horizon: int | None = None) -> Replayed:
        """The replay of a pair; what was asked for before is not made again."""
        return self.replays.of(pair, intervention, horizon)

    @property
    def per_replay(self) -> float:
        """Processor time of one replay, the mean of those that were made; 0 before the first."""
        return self.replays.per_replay

    def measure_states(self, progress: Progress | None = None) -> Observation:
        """Replay every event unchanged: the observation with each event's height in the network."""
        moved: dict[str, Event] = {}
        # the highest first: where not all can be afforded, the others keep what the record says of them
        for done, event in enumerate(sorted(self.seen.events, key=lambda e: -(e.reported or math.inf))):
            if progress:
                progress("replaying the events unchanged", done / len(self.seen.events))
            # a wave has no place to replay; the probe was folded instead
            if event.is_wave or (done and not self.allowance.fits(self.per_replay, STATES)):
                continue
            try:
                factor, _ = self.state_factor((event.id,))
                late = self._steps_late((event.id,)) if factor is not None else 0
            except NotReplayable:
                continue
            if factor is not None:
                moved[event.id] = _moved(event, late, factor)
        events = [moved.get(e.id, e) for e in self.seen.events]
        self._pairs.clear()
        self.replays.forget(LEAD)
        self.seen = replace(self.seen, events=tuple(events))
        self.replays.shorten()
        self._locate(progress)
        return self.seen

    def _locate(self, progress: Progress | None = None) -> None:
        """Find what made the first value that is not finite, of events that are not."""
        from whyspike import firstbad
        from whyspike.numerics import Numerics

        found = {}
        for event in self.seen.events:
            if event.kind != "non-finite":
                continue
            if progress:
                progress("looking for the first value that is not finite", 0.0)
            try:
                located = firstbad.find(self.subject, self.subject.window(event.step, finite=True))
            except NotReplayable:
                continue
            if located is not None:
                found[event.id] = located
        if found:
            events = tuple(
                replace(e, sample_ids=tuple(map(str, found[e.id].samples[:64])) or e.sample_ids) if e.id in found else e
                for e in self.seen.events
            )
            numerics = replace(self.seen.numerics or Numerics(), located=found)
            self.seen = replace(self.seen, events=events, numerics=numerics)

    def profile(self, progress: Progress | None = None) -> Observation:
        """Profile the spikes of the network: the observation with their kinds, and what set them off by name.

        An event that one batch carries begins with that batch.
        """
        moved = [e for e in self.seen.events if e.kind == "spike" and not e.period and (e.state or 0) >= VISIBLE]
        if len(moved) > self.most:
            moved = [moved[int(k)] for k in np.linspace(0, len(moved) - 1, self.most)]
        if self.thrifty:  # the highest first
            moved = sorted(moved, key=lambda e: -(e.state or 0))
        profiler, found, left_out, left_out_s = Profiler(self), {}, 0, 0.0
        unprofiled: list[str] = []
        for done, event in enumerate(moved):
            if self.thrifty and enough(found.values(), event, self.seen.run):
                unprofiled.append(event.id)
                continue
            if progress:
                progress(f"looking for what sets event {event.id} off", done / len(moved))
            cost = profiler.replays(event) * self.per_replay
            if not self.allowance.fits(cost, PROFILES if found or not self.thrifty else FIRST_PROFILE):
                unprofiled.append(event.id)
                left_out, left_out_s = left_out + 1, left_out_s + cost
                continue
            try:
                made = profiler.profile(event)
            except NotReplayable:
                continue
            if made is not None:
                found[event.id] = made
        events = tuple(_begun_by(e, found[e.id]) if e.id in found else e for e in self.seen.events)
        self._pairs.clear()
        self.replays.forget(LEAD)
        missing = self.seen.missing
        if left_out:
            missing = (
                *missing,
                f"what sets {left_out} of {len(moved)} spikes off: their replays would take about "
                f"{left_out_s:.0f} s more; prove(..., full=True) makes them",
            )
        self.seen = replace(
            self.seen,
            events=events,
            profiles=found,
            unprofiled=tuple(unprofiled) if self.thrifty else (),
            missing=missing,
        )
        return self.seen

    def _steps_late(self, event_ids: Sequence[str]) -> int:
        """How many steps before the event's first one the network had risen already.

        A loss is computed before the update of its own step, so that a step which damages the network shows in the
        plot one step later. The event begins with the step after which the probe loss is up.
        """
        alone = not any(self.seen.event(i).period for i in event_ids)
        most = RISE if alone and self.seen.run.facts.get("dense_probe") else MOST_LATE
        line = np.where(np.arange(most) < MOST_LATE, VISIBLE**0.5, VISIBLE)
        before: list[list[float]] = []
        for pair in self._typical(event_ids):
            if pair.redraw is None:
                made = self.replay(pair, BASELINE)
                onset, level = onset_of(made), level_before(made)
                rises = [self._factor(made.state[onset - k], level) if k <= onset else 0.0 for k in range(1, most + 1)]
                before.append(rises)
        typical = np.median(np.array(before), axis=0) if before else np.zeros(most)
        # A growing bump begins lower than it is seen: half way, in logarithms.
        return int(np.argmin(np.append(typical >= line, False)))

    def state_factor(self, event_ids: Sequence[str]) -> tuple[float | None, int]:
        """How the baseline moves the probe loss.

        Returns:
            Median over pairs of its peak over its level before, and of the number of steps above 1.1 times that level.
            A loss that passes through zero has no such factor: there a rise by the spread of the logged losses counts
            as one by a tenth.
        """
        peaks, lengths = [], []
        for pair in self._typical(event_ids):
            if pair.redraw is not None:
                continue
            made = self.replay(pair, BASELINE)
            if made.noise > OTHER:
                continue
            onset, before = onset_of(made), level_before(made)
            factors = [self._factor(value, before) for value in made.state[onset:]]
            peaks.append(float(np.max(factors)))
            lengths.append(int(np.sum(np.array(factors) >= VISIBLE)))
        if not peaks or not np.isfinite(np.median(peaks)):
            return None, 0
        return float(np.median(peaks)), int(np.median(lengths))

    def _typical(self, event_ids: Sequence[str]) -> list[Pair]:
        """The pairs that say how high events are: all, or where time is short a few of them, spread over the run."""
        pairs = self.pairs(event_ids)
        if not self.thrifty or len(pairs) <= TYPICAL:
            return pairs
        recorded = [p for p in pairs if p.redraw is None]
        return [recorded[int(k)] for k in np.unique(np.linspace(0, len(recorded) - 1, TYPICAL).astype(int))]

    @cached_property
    def _unit(self) -> float:
        """Of a loss that is not always positive: the rise that counts as a factor of e. 0 where it is."""
        loss = self.seen.run.loss
        finite = loss[np.isfinite(loss)]
        if len(finite) < 2 or finite.min() > 0:
            return 0.0
        low, high = np.quantile(np.diff(finite), [0.25, 0.75])  # of differences: the level may drift
        return float(10.0 * (high - low) / (1.349 * 2**0.5)) or 1.0

    def _factor(self, value: float, level: float) -> float:
        if self._unit:
            return float(np.exp(min((value - level) / self._unit, 700.0)))
        return value / level if level > 0 else np.nan

    def measure_of(self, cause: Cause, event_ids: Sequence[str]) -> Measure:
        """What the cause is judged by: its own measure, else the network where it moved, else the plotted number."""
        if cause.measure is not None:
            return cause.measure
        known = [s for i in event_ids if (s := self.seen.event(i).state) is not None]
        if self.thrifty and known:
            return "state" if np.median(known) >= VISIBLE else "reported"
        factor, length = self.state_factor(event_ids)
        return "state" if factor is not None and factor >= VISIBLE and length >= 1 else "reported"

    # ------------------------------------------------------------------ trials of a cause

    def trials(
        self, cause: Cause, suspicion: Suspicion, progress: Progress | None = None, *, waiting: int = 0
    ) -> tuple[Trial, ...]:
        """All trials that the cause asks for. Call it inside `subject.kept()`.

        Args:
            waiting: causes that are tried after this one, which want their part of the time that is left.

        Raises:
            NotReplayable: the deciding change or its placebo cannot be made of these batches. A change that is only
                shown beside them is left out then.
        """
        if cause.window == "epoch":
            if self._epochs is None:
                self._epochs = EpochExperiment(self.subject, allowance=self.allowance)
            return self._epochs.trials(cause, suspicion, self.seen, progress, waiting=waiting)
        pairs = self.pairs_of(cause, suspicion)
        if not pairs:
            return ()
        measure = self.measure_of(cause, suspicion.events)
        draw = Draws(self.subject)
        interventions = list(cause.interventions(self.seen, draw))
        if self.full and interventions:
            own = {i.words for i in interventions}
            interventions += [i for i in every_change(self.seen, self.subject) if i.words not in own]
        placebo = cause.placebo(self.seen, draw) if interventions else None  # beside nothing it would say nothing
        arms: list[tuple[ArmName, Intervention]] = [
            ("baseline", BASELINE),
            *(("intervention", i) for i in interventions),
            *([("placebo", placebo)] if placebo is not None else []),
        ]
        pairs = self._affordable(pairs, min(len(arms), DECIDING), waiting)
        made: list[Trial] = []
        for done, (arm, intervention) in enumerate(arms):
            if progress:
                progress(f"replaying {cause.id}: {intervention.words}", done / len(arms))
            beside = arm == "intervention" and done > 1
            chosen = pairs[:: -(-len(pairs) // PROFILE_PAIRS)] if beside else pairs
            reserved = DECIDING * len(pairs) * waiting
            if beside and not self.allowance.fits((len(chosen) + reserved) * self.per_replay):
                continue
            with suppress(NotReplayable) if beside else nullcontext():
                made += [self.trial(cause, arm, intervention, pair, measure) for pair in chosen]
        if placebo is not None and placebo.must_act:
            made = acting(made)
            if not any(t.arm == "placebo" for t in made) and not suspicion.identity:
                raise NotReplayable(idle_placebo(placebo.words))
        if len(pairs) == 1 and placebo is not None and _may_be_confirmed(made):
            first = pairs[0]
            draws = placebo_draws(suspicion)
            horizon = _needed(first.event, measure)
            cost = draws * self.per_replay * (LEAD + horizon) / (LEAD + HORIZON)
            for k in range(draws if self.allowance.fits(cost) else 0):
                if progress and k % 10 == 0:
                    progress(f"replaying {cause.id}: placebo draw {k + 1} of {draws}", k / draws)
                drawn = replace(first, number=first.number + 1 + k, redraw=k)
                made += [self.trial(cause, "placebo", placebo, drawn, measure, horizon=horizon)]
        return tuple(made)

    def pairs_of(self, cause: Cause, suspicion: Suspicion) -> list[Pair]:
        """The pairs that a cause is proven on."""
        pairs = self.pairs(self._replayed(cause, suspicion.events), cause)
        return pairs[:1] if cause.one_event else pairs

    def _affordable(self, pairs: Sequence[Pair], arms: int, waiting: int) -> list[Pair]:
        """As many of the pairs as there is time for: the recorded continuations first, spread over the events.

        Raises:
            NotReplayable: too few to say anything; the message has the time that it would take.
        """
        n = self.allowance.pairs(len(pairs), arms, self.per_replay, waiting)
        if n < min(FEW_PAIRS, len(pairs)):
            raise NotReplayable(too_long(len(pairs) * arms * self.per_replay))
        recorded = [p for p in pairs if p.redraw is None]
        if n < len(recorded):
            return [recorded[int(k)] for k in np.linspace(0, len(recorded) - 1, n)]
        return list(pairs[:n])

    def _replayed(self, cause: Cause, event_ids: Sequence[str]) -> tuple[str, ...]:
        """The events that the cause is proven on: where the network decides, those in which it moved."""
        # Where time is short not every event was replayed; its trials will tell.
        unknown = VISIBLE if self.thrifty else 0.0
        states = {i: self.seen.event(i).state for i in event_ids}
        moved = [i for i, s in states.items() if (unknown if s is None else s) >= VISIBLE]
        return tuple(moved if cause.measure in ("state", "growth") and moved else event_ids)

    def trial(
        self,
        cause: Cause,
        arm: ArmName,
        intervention: Intervention,
        pair: Pair,
        measure: Measure,
        horizon: int | None = None,
    ) -> Trial:
        """One arm of one pair."""
        if horizon is None and self.thrifty:
            horizon = min(self.replays.reach, _needed(pair.event, measure))
        made = self.replay(pair, intervention, horizon)
        onset = onset_of(made)
        reference = reported_reference(self.seen, made.event_step)
        state_reference = level_before(made)
        recorded = arm == "baseline" and pair.redraw is None
        return Trial(
            cause=cause.id,
            arm=arm,
            words=intervention.words,
            event=pair.event.id,
            pair=pair.number,
            backend="snapshot",
            first_step=made.first_step,
            event_step=made.event_step,
            reported=made.reported,
            state=made.state,
            reported_reference=reference,
            state_reference=state_reference,
            excess=excess(
                measure,
                reported=made.excess_reported,
                state=made.excess_state,
                onset=onset,
                length=1 if pair.event.period else pair.event.last_step - pair.event.step + 1,
                reported_reference=reference,
                state_reference=state_reference,
                direction=_direction(self.seen, measure, pair.event, made.event_step),
            ),
            reproduced=made.reproduced if recorded else None,
            noise=made.noise if recorded else None,
        )


def placebo_draws(suspicion: Suspicion) -> int:
    """With how many continuations a single event is ranked. An identity needs no p-value."""
    return LEAST_PAIRS if suspicion.identity else PLACEBO_DRAWS


def _may_be_confirmed(made: Sequence[Trial]) -> bool:
    """Whether a p-value can still matter: what removes too little is no cause, however rare that would be."""
    judged = judge(made)
    return judged is not None and judged.removed >= REMOVED


def _direction(seen: Observation, measure: Measure, event: Event, step: int) -> float:
    """-1.0 where an excess is counted downwards: where the record falls at a step, or an event lies below its level."""
    if measure in ("deviation", "onset"):
        return -1.0 if (event.reported or 1.0) < 1.0 else 1.0
    if measure != "jump":
        return 1.0
    row = int(np.searchsorted(seen.run.step, step))
    return -1.0 if jump(seen.run.loss.tolist()[: row + 64], row, reported_reference(seen, step)) < 0 else 1.0


def _moved(event: Event, late: int, factor: float) -> Event:
    """The event with its height in the network, so many steps earlier. A periodic one keeps its place in the epoch."""
    step, last = event.step - late, event.last_step
    if event.kind == "periodic" and event.period:
        step, last = step if step >= 0 else step + event.period, last - late
    return replace(event, state=factor, step=max(0, step), last_step=last)


def _needed(event: Event, measure: Measure) -> int:
    """Steps after the event that the measure looks at: the logged loss counts on the event's own steps alone."""
    own = 1 if event.period or measure == "onset" else event.last_step - event.step + 1
    return min(HORIZON, own) if measure in ("reported", "dip", "height", "deviation", "onset") else HORIZON


def _begun_by(event: Event, profile: Profile) -> Event:
    """The event from the batch on that carries it, with the sample that does."""
    if profile.kind not in ("one batch", "one sample") or profile.batch_step is None:
        return event
    ids = (str(profile.sample),) if profile.kind == "one sample" and profile.sample_known else event.sample_ids
    return replace(event, step=profile.batch_step, last_step=max(event.last_step, profile.batch_step), sample_ids=ids)


def reported_reference(seen: Observation, step: int) -> float:
    """Median of the finite logged losses of full-size batches in the 64 steps before."""
    run = seen.run
    rows = (run.step >= step - 64) & (run.step < step) & np.isfinite(run.loss)
    if run.n_samples is not None and run.batch_size is not None:
        full = rows & (run.n_samples == run.batch_size)
        rows = full if full.any() else rows
    return float(np.median(run.loss[rows])) if rows.any() else float("nan")
