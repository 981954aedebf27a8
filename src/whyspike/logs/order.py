"""The rows of a log in the order of their steps: appended runs apart, what a resume repeats removed, both said.

A log is written row after row, and its step counter may go back: because a second run was appended, because a crashed
run was resumed from an earlier checkpoint, because the counter starts anew in every epoch, or because two threads
wrote. Which of these it was is read from where the counter goes back to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.form import count
from whyspike.types import Mark, Note

MOST_STEPS = 1e15  # a counter beyond is no counter
SHUFFLED = 8  # rows: a counter that goes back less, and repeats nothing, was written by two threads
EPOCHWISE = 0.8  # of the times that the counter goes back, the epoch goes up: it counts within the epoch


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One run of a log."""

    rows: np.ndarray  # int64 [P], rows of the table that belong to it, in order of their step
    step: np.ndarray  # int64 [P], of these rows, over all epochs
    epoch_length: float | None = None  # steps, where the counter starts anew in every epoch
    notes: tuple[Note, ...] = ()
    marks: tuple[Mark, ...] = ()


def arrange(step: np.ndarray, epoch: np.ndarray | None = None) -> list[Piece]:
    """The runs of a log.

    Args:
        step: of each row, float64 [R]; nan where the row has none (the step before it then counts).
        epoch: of each row, float64 [R], likewise.
    """
    step = np.where(np.abs(step) < MOST_STEPS, step, np.nan)
    rows = np.flatnonzero(np.isfinite(_filled(step)))
    filled = _filled(step)[rows]
    length = None
    if epoch is not None and len(rows):
        length = _epoch_length(filled, _filled(epoch)[rows])
    if length is not None:
        assert epoch is not None, "an epoch length comes from epochs"
        filled = _over_epochs(filled, _filled(epoch)[rows], length)
        counted = np.abs(filled) < MOST_STEPS
        rows, filled = rows[counted], filled[counted]
    whole = np.round(filled).astype(np.int64)
    astray = _astray(whole)
    said: tuple[Note, ...] = ()
    if len(astray):
        first = int(astray[0])
        rows_of = "1 row has" if len(astray) == 1 else f"{count(len(astray))} rows have"
        low, own, high = (count(int(n)) for n in whole[first - 1 : first + 2])
        text = f"{rows_of} a step out of line (the first: {own}, between {low} and {high}); left out"
        said = (Note(id="malformed-rows", text=text),)
        rows, whole = np.delete(rows, astray), np.delete(whole, astray)
    starts = _new_runs(whole)
    pieces = []
    for number, (first, end) in enumerate(zip(starts, [*starts[1:], len(whole)], strict=True)):
        kept, notes, marks = _resumed(whole[first:end])
        notes = (*said, *notes)
        if len(starts) > 1:
            text = f"the log holds {len(starts)} runs, one after the other; this is number {number + 1}"
            notes = (Note(id="appended-runs", text=text), *notes)
        at = first + kept
        pieces.append(Piece(rows=rows[at], step=whole[at], epoch_length=length, notes=notes, marks=marks))
    return pieces


def once(step: np.ndarray) -> tuple[np.ndarray, Note | None]:
    """Of steps in order, the last of each, as positions; and a note where a step was logged more than once."""
    last = np.append(step[1:] != step[:-1], True) if len(step) else np.zeros(0, dtype=bool)
    twice = np.unique(step[~last])
    if not len(twice):
        return np.flatnonzero(last), None
    what = "1 step was" if len(twice) == 1 else f"{count(len(twice))} steps were"
    text = f"{what} logged more than once (the first: step {count(int(twice[0]))}); the last value of each was taken"
    return np.flatnonzero(last), Note(id="duplicate-steps", text=text)


def _astray(step: np.ndarray) -> np.ndarray:
    """The rows, as positions, whose step is far from both neighbours, which follow each other without it."""
    if len(step) < 8:
        return np.zeros(0, dtype=np.int64)
    spacing = _spacing(step)
    before, own, after = step[:-2], step[1:-1], step[2:]
    follow = (after >= before) & (after - before <= 2 * spacing)
    far = (own < before - SHUFFLED * spacing) | (own > after + SHUFFLED * spacing)
    return np.flatnonzero(follow & far) + 1


def _filled(values: np.ndarray) -> np.ndarray:
    """Values with nan replaced by the last one before it; nan before the first."""
    known = np.where(np.isfinite(values), np.arange(len(values)), -1)
    last = np.maximum.accumulate(known) if len(values) else known
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)


def _spacing(step: np.ndarray) -> int:
    """The most frequent distance between neighbouring steps; 1 without any."""
    gaps = np.diff(step)
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return 1
    values, counts = np.unique(gaps, return_counts=True)
    return int(values[counts.argmax()])


# --------------------------------------------------------------------------- a counter within the epoch


def _epoch_length(step: np.ndarray, epoch: np.ndarray) -> float | None:
    """Steps of an epoch, where the counter starts anew in every one; None where it does not."""
    back = np.flatnonzero(step[1:] < step[:-1]) + 1
    if not len(back) or np.isnan(epoch[0]):
        return None
    up = epoch[back] > epoch[back - 1]
    if up.mean() < EPOCHWISE or np.sum(np.diff(epoch) > 0) > 2 * len(back):
        return None
    # From the last step of one epoch to the first of the next is one spacing, unless logging starts anew as well.
    ends = step[back - 1] + _spacing(step) - step[back]
    return float(max(np.median(ends[up]), step.max() - step.min() + 1 if _spacing(step) == 1 else 1))


def _over_epochs(step: np.ndarray, epoch: np.ndarray, length: float) -> np.ndarray:
    """Steps counted over all epochs. The first epoch of the log keeps its own numbers."""
    return step + (np.floor(epoch) - np.floor(epoch[0])) * length


# --------------------------------------------------------------------------- going back


def _new_runs(step: np.ndarray) -> list[int]:
    """Positions at which a run begins: the first, and wherever the counter goes back to where a run began."""
    starts = [0] if len(step) else []
    if not len(step):
        return starts
    spacing = _spacing(step)
    for at in (np.flatnonzero(step[1:] < step[:-1]) + 1).tolist():
        before = step[starts[-1] : at]
        # A run that began at step 140,749 and goes back to 3 is another run; so is one that goes back to its start.
        if step[at] <= before[0] + spacing // 2 and before.max() > step[at]:
            starts.append(at)
    return starts


def _resumed(step: np.ndarray) -> tuple[np.ndarray, tuple[Note, ...], tuple[Mark, ...]]:
    """What is kept of one run, as positions in order of their step; the rows that a resume repeats are left out."""
    kept = np.ones(len(step), dtype=bool)
    marks: list[Mark] = []
    said: list[str] = []
    removed = 0
    for at in (np.flatnonzero(step[1:] < step[:-1]) + 1).tolist():
        if _two_threads(step, at):
            continue
        over = np.flatnonzero(kept[:at] & (step[:at] >= step[at]))
        if not len(over):
            continue
        removed += len(over)
        kept[over] = False
        marks.append(Mark(int(step[at]), "resume", {"from": int(step[at]), "reached": int(step[at - 1])}))
        said.append(f"step {count(int(step[at - 1]))} is followed by step {count(int(step[at]))}")
    notes: tuple[Note, ...] = ()
    if said:
        shown = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
        rows = "1 row was" if removed == 1 else f"{count(removed)} rows were"
        text = (
            f"the run was resumed from an earlier step ({shown}): {rows} logged twice, and the first of each left out"
        )
        notes = (Note(id="resume-overlap", text=text),)
    positions = np.flatnonzero(kept)
    return positions[np.argsort(step[positions], kind="stable")], notes, tuple(marks)


def _two_threads(step: np.ndarray, at: int) -> bool:
    """Whether the counter goes back by a few rows only, to steps that were not there yet."""
    low, high = max(0, at - SHUFFLED), min(len(step), at + SHUFFLED)
    before, after = step[low:at], step[at:high]
    if step[at] < before.min():
        return False
    return not set(before.tolist()) & set(after[after < step[at - 1]].tolist()) and bool(after.max() > step[at - 1])
