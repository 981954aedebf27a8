"""Does the record come out of its own states once more? Every replay starts with this question.

A window is the steps that a capsule holds. It is run twice, unchanged, and both runs are held against the record and
against each other. On one thread of one machine all three are bitwise the same. Where the two runs differ from each
other, the training is not deterministic: rounding, a little, at every step. Where the two runs agree and the record
alone differs, from one step on, something happened at that step that is not in the training's own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from whyspike.replay import Replayed, Subject
    from whyspike.types import Event

SPREAD = 4  # windows over the run, beside those of the events
SECONDS = 10.0  # of replays altogether: a large network has fewer of them


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One window, run twice. Differences are relative to the record; 0 is bitwise."""

    first_step: int
    n_steps: int
    step: int | None  # the first one whose loss is not bitwise the record's; None where all are
    difference: float  # of that step
    largest: float  # of all steps
    between: float  # the two runs to each other, at the first step where they differ
    between_step: int | None = None  # that step; None where they are bitwise the same

    @property
    def bitwise(self) -> bool:
        return self.step is None


def look(subject: Subject, events: Sequence[Event], seconds: float = SECONDS) -> tuple[Reproduction, ...]:
    """Run some windows again, those of events first. Call it inside `kept()`.

    Args:
        seconds: after which no other window is begun.
    """
    paths = subject.run.capsules
    spread = [paths[int(k)] for k in np.unique(np.linspace(0, len(paths) - 1, SPREAD).astype(int))] if paths else []
    chosen = dict.fromkeys([*_of_events(subject, events), *spread])
    made: list[Reproduction] = []
    began = perf_counter()
    for path in chosen:
        if perf_counter() - began > seconds:
            break
        found = _one(subject, path)
        if found is not None:
            made.append(found)
    return tuple(sorted(made, key=lambda r: r.first_step))


def of_replays(replays: Sequence[Replayed]) -> tuple[Reproduction, ...]:
    """The same of unchanged replays that were made for another reason; none where one is not bitwise the record.

    A window that is bitwise the record needs no second run.
    """
    if not all(made.reproduced for made in replays):
        return ()
    found = {
        made.first_step: Reproduction(
            first_step=made.first_step, n_steps=len(made.reported), step=None, difference=0.0, largest=0.0, between=0.0
        )
        for made in sorted(replays, key=lambda made: len(made.reported))
    }
    return tuple(found[step] for step in sorted(found))


def _of_events(subject: Subject, events: Sequence[Event]) -> list[Path]:
    held = {path: [s.step for s in subject.capsule(path).steps if s.batches] for path in subject.run.capsules}
    first = {event.step for event in events if not event.is_wave}
    return [path for path, steps in held.items() if any(step in first for step in steps)][:SPREAD]


def _one(subject: Subject, path: Path) -> Reproduction | None:
    recorded, once = _losses(subject, path)
    if not once:
        return None
    twice = once
    if once != recorded:  # a window that is bitwise the record needs no second run
        _, twice = _losses(subject, path)
    first = subject.capsule(path).steps[0].step
    apart = [_difference(a, b) for a, b in zip(once, recorded, strict=True)]
    between = [_difference(a, b) for a, b in zip(once, twice, strict=False)]
    at = next((k for k, d in enumerate(apart) if d > 0), None)
    split = next((k for k, d in enumerate(between) if d > 0), None)
    return Reproduction(
        first_step=first,
        n_steps=len(once),
        step=None if at is None else first + at,
        difference=0.0 if at is None else apart[at],
        largest=max(apart),
        between=0.0 if split is None else between[split],
        between_step=None if split is None else first + split,
    )


def _losses(subject: Subject, path: Path) -> tuple[list[float], list[float]]:
    """The recorded losses of a window, and those of an unchanged run of it."""
    from whyspike.replay import Window
    from whyspike.seams import BASELINE

    steps = [s.step for s in subject.capsule(path).steps if s.batches]
    if not steps:
        return [], []
    recorded, again = [], []
    for record, loss in subject.steps(Window(path, steps[-1], None), BASELINE, None, stop=steps[-1] + 1):
        recorded.append(_comparable(record.loss))
        again.append(_comparable(math.nan if loss is None else loss))
    return recorded, again


def _comparable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss  # nan equals nan here


def _difference(ours: float, theirs: float) -> float:
    if ours == theirs:
        return 0.0
    return abs(ours - theirs) / max(abs(theirs), 1e-300) if math.isfinite(ours - theirs) else math.inf
