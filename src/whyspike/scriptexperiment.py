"""The experiment on a script that no tape carries: whole runs, each with one thing changed at the events.

An arm is one run of the script, in which the change acts at every event alike; a pair is one event in the runs with and
without it, so they share every batch and every random number up to the first event. An arm is measured by the loss as
plotted. The unchanged run must be bitwise the record, or nothing is tried.

Where one run has too few events to decide, the script runs with other seeds, a few at a time, until every cause is
decided one way or the other. The p-value is one that holds wherever one stops (`anytime.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whyspike import scriptorders
from whyspike.arm import ArmDraws
from whyspike.arms import ScriptSource, Wanted
from whyspike.cause import Cause, Observation, catalogue
from whyspike.detect import Detector
from whyspike.errors import NotReplayable
from whyspike.excess import Measure, excess
from whyspike.experiment import HORIZON, LEAD
from whyspike.judge import ALPHA, REFUTED, REMOVED, acting, idle_placebo, judge
from whyspike.periods import occurrences
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Event, Run, Suspicion, Trial

MOST_CAUSES = 4  # that are tried; each costs two runs
SEEDS = (1, 2, 3, 4, 5, 6)  # further ones, where the events of the script's own run are too few
ENOUGH = 24  # pairs; what they do not decide, more of them will not
FEWEST = 3  # pairs that may refute
PLOTTED: tuple[Measure | None, ...] = (None, "reported", "dip", "height", "deviation", "onset")
Progress = Callable[[str, float], None]


def trials_of(
    seen: Observation,
    suspicions: Sequence[Suspicion],
    source: ScriptSource,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Suspicion, ...], dict[str, tuple[Trial, ...]]]:
    """The trials of the suspicions that whole runs can decide, and the suspicions, with the reason where they cannot.

    Args:
        seconds: the most to spend.
    """
    open_ones = [s for s in suspicions if s.outcome != "refuted" and s.events and _can(catalogue()[s.cause])]
    plans = [p for s in open_ones[:MOST_CAUSES] if (p := _plan(seen, s)) is not None]
    if not plans:
        return tuple(suspicions), {}
    arms = {("baseline", ""): Wanted(intervention=BASELINE)}
    for plan in plans:
        for arm, change in plan.changes:
            arms[(plan.suspicion.cause, arm)] = Wanted(intervention=change, events=plan.steps)
    expected = source.expected_s(list(arms.values()))
    if seconds is not None and expected > seconds:
        reason = f"{len(arms)} runs of the script, {expected:.0f} s, do not fit the budget"
        return _said(suspicions, plans, reason), {}
    begun = time.monotonic()
    try:
        made = dict(zip(arms, source.results(list(arms.values()), progress), strict=True))
    except NotReplayable as error:
        return _said(suspicions, plans, str(error)), {}
    losses = {key: _losses(result) for key, result in made.items()}
    noise = _noise(losses["baseline", ""], seen.run)
    if noise > 0.0:
        reason = (
            f"the script run again, unchanged, is another run (its losses differ by {noise:.2g}): seed all generators "
            "that it uses, and use one thread, to compare runs with one thing changed"
        )
        return _said(suspicions, plans, reason), {}
    own = _Course.of_run(seen.run)
    found = {p.suspicion.cause: p.trials(own, {k: losses[k] for k in p.keys(losses)}, p.where) for p in plans}
    idle = {}
    for plan in plans:
        if not plan.has_placebo(found[plan.suspicion.cause]) and not plan.suspicion.identity:
            idle[plan.suspicion.cause] = plan.said(idle_placebo(plan.changes[-1][1].words))
            del found[plan.suspicion.cause]
    plans = [p for p in plans if p.suspicion.cause not in idle]
    left = None if seconds is None else seconds - (time.monotonic() - begun)
    said = idle | _more_seeds(seen, plans, found, source, left, progress)
    return tuple(said.get(s.cause, s) for s in suspicions), {k: tuple(made) for k, made in found.items()}


def _more_seeds(
    seen: Observation,
    plans: Sequence[_Plan],
    found: dict[str, list[Trial]],
    source: ScriptSource,
    seconds: float | None,
    progress: Progress | None,
) -> dict[str, Suspicion]:
    """Add trials of other seeds to `found`, as many at a time as run together, until every cause is decided.

    Returns:
        The suspicions of those causes for which that ended before, with the reason.
    """
    waiting, begun = list(SEEDS), time.monotonic()
    while waiting:
        undecided = [p for p in plans if p.repeats(seen) and not decided(found[p.suspicion.cause], len(plans))]
        if not undecided:
            break
        wave, waiting = waiting[: source.at_once], waiting[source.at_once :]
        runs = len(wave) * (1 + sum(len(p.changes) for p in undecided))
        expected = -(-runs // source.at_once) * source.seconds
        if seconds is not None and time.monotonic() - begun + expected > seconds:
            reason = f"further seeds, {runs} runs of the script, {expected:.0f} s, do not fit the budget"
            return {p.suspicion.cause: p.said(reason) for p in undecided}
        try:
            bases = source.results([Wanted(intervention=BASELINE, seed=s) for s in wave], progress)
            courses = {s: _Course.of_arm(base) for s, base in zip(wave, bases, strict=True)}
            arms: dict[tuple[int, str, str], Wanted] = {}
            where = {(s, p.suspicion.cause): p.events_of(seen, courses[s]) for s in wave for p in undecided}
            for p in undecided:
                for s in wave:
                    steps = tuple(step for _, step in where[s, p.suspicion.cause])
                    for arm, change in p.changes if steps else ():
                        arms[s, p.suspicion.cause, arm] = Wanted(intervention=change, seed=s, events=steps)
            made = dict(zip(arms, source.results(list(arms.values()), progress), strict=True)) if arms else {}
        except NotReplayable as error:
            return {p.suspicion.cause: p.said(f"with other seeds: {error}") for p in undecided}
        for s in wave:
            for p in undecided:
                cause = p.suspicion.cause
                losses = {(c, arm): _losses(r) for (k, c, arm), r in made.items() if (k, c) == (s, cause)}
                if losses:
                    losses["baseline", ""] = courses[s].loss
                    found[cause] += p.trials(courses[s], losses, where[s, cause], seed=s)
    return {}


def decided(trials: Sequence[Trial], causes: int) -> bool:
    """Whether further runs would change nothing about a cause: it is confirmed, refuted, or beyond deciding.

    Args:
        causes: that are tried; each has its share of the error rate (Bonferroni, stricter than Holm's correction).
    """
    judged = judge(trials)
    if judged is None or math.isnan(judged.removed) or judged.arms[0].n >= ENOUGH:
        return True
    if judged.removed < REFUTED:
        return judged.arms[0].n >= FEWEST
    return judged.removed >= REMOVED and judged.p_value * causes <= ALPHA


def _can(cause: Cause) -> bool:
    if cause.window == "epoch":
        return cause.measure == "pattern"
    return cause.window == "event" and cause.measure in PLOTTED


def _noise(ours: np.ndarray, run: Run) -> float:
    if len(ours) < len(run):
        return math.inf
    a, b = ours[: len(run)], run.loss
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return 0.0 if same.all() else float(np.nanmax(np.abs(a - b)[~same] / np.maximum(np.abs(b[~same]), 1e-300)))


def _said(suspicions: Sequence[Suspicion], plans: Sequence[_Plan], reason: str) -> tuple[Suspicion, ...]:
    tried = {p.suspicion.cause: p.said(reason) for p in plans}
    return tuple(tried.get(s.cause, s) for s in suspicions)


def _losses(result: Mapping[str, Any]) -> np.ndarray:
    return np.array([float(v) for v in result["loss"]])


@dataclass(frozen=True)
class _Course:
    """An unchanged run: the losses and samples of its steps, from 0 on."""

    loss: np.ndarray
    sizes: np.ndarray
    batch_size: int
    is_record: bool

    @classmethod
    def of_run(cls, run: Run) -> _Course:
        sizes = run.n_samples if run.n_samples is not None else np.zeros(len(run), dtype=np.int64)
        return cls(run.loss, sizes, run.batch_size or 0, is_record=True)

    @classmethod
    def of_arm(cls, result: Mapping[str, Any]) -> _Course:
        return cls(_losses(result), np.array(result["n_samples"]), result["batch_size"], is_record=False)

    def level(self, step: int) -> float:
        """Median of the finite losses of full-size batches in the 64 steps before; nan without any."""
        rows = slice(max(0, step - 64), step)
        finite = np.isfinite(self.loss[rows])
        full = finite & (self.sizes[rows] == self.batch_size)
        chosen = self.loss[rows][full if full.any() else finite]
        return float(np.median(chosen)) if len(chosen) else math.nan

    def events(self) -> Iterator[Event]:
        """Its events, as the detector sees them."""
        detector = Detector(batch_size=self.batch_size or None)
        for step, (loss, n) in enumerate(zip(self.loss.tolist(), self.sizes.tolist(), strict=True)):
            detector.update(step, loss, n_samples=int(n) or None)
        detector.finish()
        yield from detector.events


class _Plan:
    """What one suspicion asks for."""

    def __init__(
        self,
        cause: Cause,
        suspicion: Suspicion,
        where: Sequence[tuple[Event, int]],
        changes: list[tuple[str, Intervention]],
    ) -> None:
        self.cause, self.suspicion, self.where, self.changes = cause, suspicion, where, changes
        self.steps = tuple(step for _, step in where)

    def keys(self, losses: Mapping[tuple[str, str], np.ndarray]) -> list[tuple[str, str]]:
        return [key for key in losses if key[0] in ("baseline", self.cause.id)]

    def said(self, reason: str) -> Suspicion:
        """The suspicion with one more reason."""
        return replace(self.suspicion, reason="; ".join(r for r in (self.suspicion.reason, reason) if r))

    def repeats(self, seen: Observation) -> bool:
        """Whether the events of another seed are known to be of this cause.

        They come at a place of the epoch, or all that there are in the record are of it.
        """
        own = set(self.suspicion.events)
        return all(e.period for e, _ in self.where) or all(e.id in own for e in seen.events if not e.period)

    def events_of(self, seen: Observation, course: _Course) -> list[tuple[Event, int]]:
        """The events of another seed's run that are this plan's, with their steps."""
        if all(event.period for event, _ in self.where):
            return [(event, step) for event, step in self.where if step < len(course.loss)]
        kinds = {event.kind for event, _ in self.where}
        name = self.where[0][0].id
        return [(replace(e, id=name), e.step) for e in course.events() if e.kind in kinds and e.step > 0]

    def trials(
        self,
        course: _Course,
        losses: Mapping[tuple[str, str], np.ndarray],
        where: Sequence[tuple[Event, int]],
        seed: int = 0,
    ) -> list[Trial]:
        arms: list[tuple[ArmName, str, np.ndarray]] = [("baseline", BASELINE.words, losses["baseline", ""])]
        for arm, change in self.changes:
            kind: ArmName = "intervention" if arm == "intervention" else "placebo"
            arms.append((kind, change.words, losses[self.cause.id, arm]))
        made = [
            self._trial(course, 1000 * seed + pair, event, step, arm, words, values)
            for arm, words, values in arms
            for pair, (event, step) in enumerate(where)
            if step < len(values)
        ]
        return acting(made) if any(arm == "placebo" and change.must_act for arm, change in self.changes) else made

    def has_placebo(self, trials: Sequence[Trial]) -> bool:
        """Whether a placebo that is wanted is among the trials."""
        wanted = any(arm == "placebo" for arm, _ in self.changes)
        return not wanted or any(t.arm == "placebo" for t in trials)

    def _trial(
        self, course: _Course, pair: int, event: Event, step: int, arm: ArmName, words: str, values: np.ndarray
    ) -> Trial:
        first, reference = max(0, step - LEAD), course.level(step)
        reported = values[first : step + HORIZON + 1].tolist()
        shown = [math.inf if math.isnan(v) and arm == "baseline" else v for v in reported]
        checked = arm == "baseline" and course.is_record
        return Trial(
            cause=self.cause.id,
            arm=arm,
            words=words,
            event=event.id,
            pair=pair,
            backend="scratch",
            first_step=first,
            event_step=step,
            reported=tuple(reported),
            state=(),
            reported_reference=reference,
            state_reference=math.nan,
            excess=excess(
                self.cause.measure or "reported",
                reported=shown,
                state=(),
                onset=step - first,
                length=1 if event.period else event.last_step - event.step + 1,
                reported_reference=reference,
                state_reference=math.nan,
                direction=-1.0 if (event.reported or 1.0) < 1.0 else 1.0,
            ),
            reproduced=True if checked else None,
            noise=0.0 if checked else None,
        )


class _OrderPlan(_Plan):
    """What a suspicion about the order of the samples asks for."""

    def __init__(
        self,
        cause: Cause,
        suspicion: Suspicion,
        where: Sequence[tuple[Event, int]],
        changes: list[tuple[str, Intervention]],
        run: Run,
    ) -> None:
        super().__init__(cause, suspicion, where, changes)
        self.steps, self._run = (), run

    def repeats(self, seen: Observation) -> bool:
        return False

    def trials(
        self,
        course: _Course,
        losses: Mapping[tuple[str, str], np.ndarray],
        where: Sequence[tuple[Event, int]],
        seed: int = 0,
    ) -> list[Trial]:
        return scriptorders.trials_of(self._run, self.cause, self.suspicion, self.changes, losses, where[0][0])


def _plan(seen: Observation, suspicion: Suspicion) -> _Plan | None:
    cause = catalogue()[suspicion.cause]
    draw = ArmDraws()
    interventions = list(cause.interventions(seen, draw))
    if not interventions:
        return None
    placebo = cause.placebo(seen, draw)
    changes: list[tuple[str, Intervention]] = [("intervention", interventions[0])]
    if placebo is not None:
        changes.append(("placebo", placebo))
    if cause.window == "epoch":
        where = [(seen.event(suspicion.events[0]), 0)]
        return _OrderPlan(cause, suspicion, where, changes, seen.run) if scriptorders.epochs_of(seen.run) else None
    where = [
        (event, int(step))
        for event in map(seen.event, suspicion.events)
        if not event.is_wave
        for step in occurrences(seen.run, event)
    ]
    unique = {step: (event, step) for event, step in where}
    return _Plan(cause, suspicion, [unique[k] for k in sorted(unique)], changes) if unique else None
