"""The experiment on a script that no tape carries: whole runs, each with one thing changed at the events.

An arm is one run of the script, in which the change acts at every event alike; a pair is one event in the runs with and
without it, so they share every batch and every random number up to the first event. An arm is measured by the loss as
plotted. The unchanged run must be bitwise the record, or nothing is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from whyspike.arm import ArmDraws
from whyspike.arms import ScriptSource, Wanted
from whyspike.cause import Cause, Observation, catalogue
from whyspike.errors import NotReplayable
from whyspike.excess import Measure, excess
from whyspike.experiment import HORIZON, LEAD, reported_reference
from whyspike.periods import occurrences
from whyspike.seams import BASELINE, Intervention
from whyspike.types import ArmName, Event, Run, Suspicion, Trial

MOST_CAUSES = 4  # that are tried; each costs two runs
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
    try:
        made = dict(zip(arms, source.results(list(arms.values()), progress), strict=True))
    except NotReplayable as error:
        return _said(suspicions, plans, str(error)), {}
    losses = {key: np.array([float(v) for v in result["loss"]]) for key, result in made.items()}
    noise = _noise(losses["baseline", ""], seen.run)
    if noise > 0.0:
        reason = (
            f"the script run again, unchanged, is another run (its losses differ by {noise:.2g}): seed all generators "
            "that it uses, and use one thread, to compare runs with one thing changed"
        )
        return _said(suspicions, plans, reason), {}
    found = {p.suspicion.cause: tuple(p.trials(seen, losses)) for p in plans}
    return tuple(suspicions), found


def _can(cause: Cause) -> bool:
    return cause.window == "event" and cause.measure in PLOTTED


def _noise(ours: np.ndarray, run: Run) -> float:
    if len(ours) < len(run):
        return math.inf
    a, b = ours[: len(run)], run.loss
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return 0.0 if same.all() else float(np.nanmax(np.abs(a - b)[~same] / np.maximum(np.abs(b[~same]), 1e-300)))


def _said(suspicions: Sequence[Suspicion], plans: Sequence[_Plan], reason: str) -> tuple[Suspicion, ...]:
    tried = {p.suspicion.cause for p in plans}
    return tuple(
        replace(s, reason="; ".join(r for r in (s.reason, reason) if r)) if s.cause in tried else s for s in suspicions
    )


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

    def trials(self, seen: Observation, losses: dict[tuple[str, str], np.ndarray]) -> list[Trial]:
        arms: list[tuple[ArmName, str, np.ndarray]] = [("baseline", BASELINE.words, losses["baseline", ""])]
        for arm, change in self.changes:
            kind: ArmName = "intervention" if arm == "intervention" else "placebo"
            arms.append((kind, change.words, losses[self.cause.id, arm]))
        return [
            self._trial(seen, pair, event, step, arm, words, values)
            for arm, words, values in arms
            for pair, (event, step) in enumerate(self.where)
            if step < len(values)
        ]

    def _trial(
        self, seen: Observation, pair: int, event: Event, step: int, arm: ArmName, words: str, values: np.ndarray
    ) -> Trial:
        first, reference = max(0, step - LEAD), reported_reference(seen, step)
        reported = values[first : step + HORIZON + 1].tolist()
        shown = [math.inf if math.isnan(v) and arm == "baseline" else v for v in reported]
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
            reproduced=True if arm == "baseline" else None,
            noise=0.0 if arm == "baseline" else None,
        )


def _plan(seen: Observation, suspicion: Suspicion) -> _Plan | None:
    cause = catalogue()[suspicion.cause]
    draw = ArmDraws()
    interventions = list(cause.interventions(seen, draw))
    if not interventions:
        return None
    placebo = cause.placebo(seen, draw)
    where = [
        (event, int(step))
        for event in map(seen.event, suspicion.events)
        if not event.is_wave
        for step in occurrences(seen.run, event)
    ]
    unique = {step: (event, step) for event, step in where}
    changes: list[tuple[str, Intervention]] = [("intervention", interventions[0])]
    if placebo is not None:
        changes.append(("placebo", placebo))
    return _Plan(cause, suspicion, [unique[k] for k in sorted(unique)], changes) if unique else None
