"""The periods that a run has by itself, each with where it comes from.

Only these are tested. A search over all lags finds something in every long run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.points import MEETING
from whyspike.signals import logged
from whyspike.types import Run

LEAST = 4  # returns: fewer are no period
REGULAR = 0.8  # of the gaps between marks are the same
MARKS = {
    "evaluation": "the evaluation",
    "target": "the update of the target network",
    "save": "saving",
    "boundary": "a change between two steps",
}
GROWTH_INTERVAL = 2000  # steps without overflow after which torch.amp.GradScaler doubles its scale
LENGTH_GROUPED = 50  # batches in a megabatch of transformers' LengthGroupedSampler


@dataclass(frozen=True, kw_only=True)
class OwnPeriod:
    """A period that the run has."""

    period: int  # steps
    origins: tuple[str, ...]  # in words; several where they cannot be told apart in this run
    of_epoch: bool = False  # it is counted from each epoch's first step


def own_periods(run: Run) -> tuple[OwnPeriod, ...]:
    """The periods of a run: its epoch first, then the others from the shortest on.

    Two that drift apart by less than one step over the whole run are one, with both their origins.
    """
    steps = int(run.step[-1]) + 1 - int(run.step[0]) if len(run) else 0
    found: list[tuple[int, str, bool]] = []
    if run.steps_per_epoch:
        found.append((run.steps_per_epoch, "the epoch", False))
    others = [(_regular([m.step for m in run.marked(name)]), words, False) for name, words in MARKS.items()]
    for name, series in logged(run).items():
        others.append((_regular(series.step), f"the logging of {name}", False))
        others.append((_cycle(series.step, series.value), f"the cycle of {name}", False))
    if run.lr is not None:
        others.append((_cycle(run.step, run.lr), "the cycle of the learning rate", False))
    meeting = run.facts.get(MEETING)
    if isinstance(meeting, int):
        others.append((meeting, "the epoch, as a log of some of its steps meets it", False))
    workers, micro = run.facts.get("num_workers"), run.facts.get("accumulate")
    micro = micro if isinstance(micro, int) and micro > 0 else 1
    if isinstance(workers, int) and workers > 1:
        # Worker k draws the batches k, k + W, k + 2 W, … of every epoch.
        others.append((workers // int(np.gcd(workers, micro)), f"the {workers} workers of the loader", True))
    if run.facts.get("scaler"):
        others.append((GROWTH_INTERVAL, "the growth interval of GradScaler", False))
    if run.facts.get("group_by_length") or "Length" in str(run.facts.get("sampler") or ""):
        others.append((LENGTH_GROUPED, "the megabatch of length-grouped batches", True))
    found += sorted((p, words, anchored) for p, words, anchored in others if p and 1 < p <= steps // LEAST)
    made: list[OwnPeriod] = []
    for period, words, anchored in found:
        same = next((k for k, own in enumerate(made) if not _told_apart(own.period, period, steps)), None)
        if same is None:
            made.append(OwnPeriod(period=period, origins=(words,), of_epoch=anchored))
        else:
            own = made[same]
            made[same] = OwnPeriod(period=own.period, origins=(*own.origins, words), of_epoch=own.of_epoch)
    return tuple(made)


def _told_apart(a: int, b: int, steps: int) -> bool:
    """Whether what comes every `a` steps is at least one step off what comes every `b`, by the end of the run."""
    return abs(a - b) * (steps // max(a, b)) >= 1


def _regular(steps: np.ndarray | list[int]) -> int | None:
    """The gap between steps that nearly always have the same one; None without such a gap."""
    gaps = np.diff(np.asarray(steps, dtype=np.int64))
    if len(gaps) and gaps.min() <= 0:
        gaps = np.diff(np.unique(steps))
    if len(gaps) < LEAST:
        return None
    if (gaps == gaps[0]).all():
        return int(gaps[0]) if gaps[0] > 1 else None
    sizes, counts = np.unique(gaps, return_counts=True)
    most = int(sizes[counts.argmax()])
    return most if most > 1 and np.mean(gaps == most) >= REGULAR else None


def _cycle(step: np.ndarray, value: np.ndarray) -> int | None:
    """Steps between the peaks of what goes up and down by a schedule; nothing that is noisy has regular ones."""
    if len(value) < 3 or not np.isfinite(value).all():
        return None
    rows = np.flatnonzero(np.diff(value, prepend=np.nan) != 0)  # a plateau counts once
    x = value[rows]
    peaks = np.flatnonzero((x[1:-1] > x[:-2]) & (x[1:-1] > x[2:])) + 1
    return _regular(step[rows[peaks]])
