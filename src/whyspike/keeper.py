"""Keeps snapshots with the batches that follow them: a ring in memory, and on disk those that are pinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from whyspike import capsule
from whyspike.boundary import Boundary
from whyspike.capsule_file import StepRecord
from whyspike.heldsteps import HeldSteps, versions_of
from whyspike.pins import Pins
from whyspike.ring import SLOTS, Ring, Slot
from whyspike.runfolder import RunFolder
from whyspike.stretch import Step, Stretch, n_samples, sample_ids
from whyspike.strides import Stride, counts

FOLLOW = 28  # steps after an event, or after the last batch of an epoch, that a capsule holds
HORIZON = 20  # of them a replay needs at least so many (replay.HORIZON)
LEAD = 4  # a snapshot is taken so many steps before the last one of an epoch: an experiment wants ordinary steps, too
AHEAD = 24  # steps between a snapshot and the event: the rise begins up to 14 before it is seen in a probe, and 10 more
SLOTS_CLOSELY = 5  # so many of a stride of 16 reach back to there when the detector has the news, 16 steps later
APART = 8  # steps between two snapshots at least
# Steps that the detector is behind, at least and at most. Each time it is much code and much memory that a step does
# not touch, which come into the caches again and push out what is the training's.
BEHIND = (16, 256)
LATE = 16  # steps until the detector sees a new level
BEYOND = 32  # steps that are held beyond a stride and those: FOLLOW and a few
FORESEEN = 12  # changes between two steps after which the next one is foreseen; later ones are thinned
NEVER = 1 << 62
BUDGET = 0.0025  # share of the training's time for snapshots
FRAME_SHARE = 0.1  # of max_bytes is left to the record itself

Mark = Callable[[int, str, dict[str, object]], None]


class Keeper:
    """Takes snapshots, holds the steps that follow, and writes capsules.

    Args:
        mark: notes something in the record.
        closely: take and keep snapshots at the first stride throughout, whatever it costs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        scaler: Any,
        *,
        max_bytes: int,
        store_batches: bool,
        mark: Mark,
        closely: bool = False,
    ) -> None:
        self.stride = Stride("snapshot", 16, math.inf if closely else BUDGET)
        self.held = HeldSteps(store=store_batches, say=self._say)
        self.batch_size: int | None = None
        self.boundaries: Mapping[int, Boundary] = {}  # what happened before some steps; the recorder fills it
        self.ready_at = NEVER  # number of steps after which a pinned snapshot has the steps that follow it
        self._ahead = AHEAD if closely else 0
        slots = SLOTS_CLOSELY if closely else SLOTS
        self._ring = Ring(model, optimizer, scheduler, scaler, max_bytes, n_slots=slots)
        self._pins = Pins(closely=closely)
        self._max_bytes, self._mark = max_bytes, mark
        self.next_step = 0  # before this one no snapshot is due
        self._last = self._last_boundary = -(1 << 30)
        self._changed = -1  # the step before which something changed between two steps, the last time
        self._foreseen = -1  # before this step a snapshot is taken, because it may change again soon after
        self._foresights = 0
        self._until: dict[int, int] = {}  # last step that the capsule written for a snapshot holds
        self._said: set[str] = set()

    # ------------------------------------------------------------------ steps

    @property
    def behind(self) -> int:
        """So many steps may go by until the detector sees them: the snapshot before is still in the ring then.

        At most a stride goes by until there is news of a step. In it at most one snapshot is taken by the stride and
        one at the end of an epoch, fewer than there are `SLOTS`. Where memory has room for few steps, it is half of
        those that are held.
        """
        least, most = BEHIND
        return min(max(least, self.stride.every - LATE), most, max(1, self.held.most // 2))

    def follow(self, stretch: Stretch) -> None:
        """Steps have ended; those that are held have them already."""
        self.held.follow(stretch, self.stride.every + self.behind + BEYOND)

    def covers(self, step: int) -> bool:
        """Whether a capsule holds this step, or may come to hold it."""
        if step >= self.held.begin:
            return True
        spans = [(s.step, s.pinned_until) for s in self._ring.pinned()] + list(self._until.items())
        return any(first <= step <= (last or first) for first, last in spans)

    # ------------------------------------------------------------------ snapshots

    def epoch_begins(self, step: int, last: int | None) -> None:
        """An epoch begins; `last` is the index of its last step, None when it cannot be foreseen."""
        self.next_step = self._next(step, 0, last)

    def _next(self, step: int, index: int, last: int | None) -> int:
        """The first step from `step` on at which a snapshot may be due."""
        found = max(-(-step // self.stride.every) * self.stride.every, self._last + APART)
        if self._foreseen >= step:
            found = min(found, self._foreseen)
        if last and index >= 0:
            boundary = step - index + last - lead(last)
            if boundary >= step:
                return min(found, boundary)
        return found

    def due(self, step: int, index: int, last: int | None) -> bool:
        """Whether a snapshot is taken before this step. To be asked when `next_step` is reached.

        Args:
            index: of the step in its epoch; -1 when not known.
            last: index of the epoch's last step; None when it cannot be foreseen.
        """
        if self._before_last(index, last) and step - self._last_boundary >= max(self.stride.every, APART):
            due = step > self._last
        elif self._last < 0 or step == self._foreseen:  # what goes wrong first can be replayed from the start alone
            due = True
        elif step - self._last < APART or not self.stride.due(step):
            due = False
        else:  # not right before the one of the epoch's end
            due = not last or index < 0 or not 0 <= last - lead(last) - index < APART
        if not due:
            self.next_step = self._next(step + 1, index + 1 if index >= 0 else -1, last)
        return due

    def _before_last(self, index: int, last: int | None) -> bool:
        return last is not None and last > 0 and index >= 0 and index == last - lead(last)

    def take(self, step: int, index: int, last: int | None, elapsed_s: float) -> None:
        """Take a snapshot before this step."""
        kind = "start" if self._last < 0 else "epoch-end" if self._before_last(index, last) else "steady"
        self._last = step
        self.next_step = self._next(step + 1, index + 1 if index >= 0 else -1, last)
        start = perf_counter()
        slot = self._ring.take(step)
        self.stride.spent(perf_counter() - start)
        if slot is None:
            if self._ring.refused:
                self._say("snapshots-off", step, {"reason": self._ring.refused})
            return
        ahead = 0
        if kind == "epoch-end":
            self._last_boundary = step
            ahead = lead(last or 0)
        if self._may_pin(slot):
            reasons = self._pins.for_routine(kind, elapsed_s)
            if reasons:
                self._pin(slot, reasons, step + ahead + FOLLOW)

    def event(self, step: int, height: float, *, at_epoch_end: bool, fresh: bool, elapsed_s: float) -> None:
        """The detector has seen an event (or, not fresh, a new peak of the last one)."""
        slot = self._ring.covering(step, ahead=0 if at_epoch_end else self._ahead)
        if slot is None or self.held.begin > slot.step:
            return
        reasons = self._pins.for_event(height, at_epoch_end=at_epoch_end, fresh=fresh, elapsed_s=elapsed_s)
        if not reasons:
            return
        if self._until.get(slot.step, -1) >= step + HORIZON and slot.pinned_until is None:
            self._delete(self._pins.written(slot.step, None, reasons, 0.0))
        elif slot.pinned_until is not None or self._may_pin(slot):
            self._pin(slot, reasons, max(step + FOLLOW, slot.pinned_until or 0))

    def boundary(self, step: int, change: Boundary, elapsed_s: float) -> None:
        """Something has changed before this step: keep a snapshot from before it, with some steps in between."""
        if set(change.parts) <= {"rng"}:
            return
        interval, self._changed = step - self._changed, step
        if interval > 3 * APART and self._changed >= 0:
            if counts(self._foresights, FORESEEN):
                self._foreseen = step + interval - APART
                self.next_step = min(self.next_step, self._foreseen)
            self._foresights += 1
        before = [s for s in self._ring.slots if step - len(self.held.steps) <= s.step < step]
        early = [s for s in before if s.step <= step - APART]
        slot = max(early or before, key=lambda s: s.step, default=None)
        if slot is None:
            return
        reasons = self._pins.for_routine("boundary", elapsed_s)
        if not reasons:
            return
        if self._until.get(slot.step, -1) >= step + HORIZON and slot.pinned_until is None:
            self._delete(self._pins.written(slot.step, None, reasons, 0.0))
        elif slot.pinned_until is not None or self._may_pin(slot):
            self._pin(slot, reasons, max(step + FOLLOW, slot.pinned_until or 0))

    def adopt(self, optimizer: Optimizer) -> None:
        """The training goes on with another optimizer over the same parameters."""
        self._ring.adopt(optimizer)

    def _may_pin(self, slot: Slot) -> bool:
        others = [s for s in self._ring.pinned() if s is not slot]
        return len(others) < max(1, self._ring.n_slots - 1)

    def _pin(self, slot: Slot, reasons: list[str], until: int) -> None:
        slot.pinned_until = max(slot.step, min(until, slot.step + self.held.most - 1))
        slot.reasons += [r for r in reasons if r not in slot.reasons]
        self._set_ready()

    def _set_ready(self) -> None:
        waiting = [s.pinned_until for s in self._ring.pinned() if s.pinned_until is not None]
        self.ready_at = min(waiting) + 1 if waiting else NEVER

    # ------------------------------------------------------------------ writing

    def write_ready(self, folder: RunFolder) -> None:
        """Write the pinned snapshots whose steps have all been recorded."""
        for slot in self._ring.pinned():
            assert slot.pinned_until is not None
            if self.held.end > slot.pinned_until:
                self._write(slot, folder)
        self._set_ready()

    def finish(self, folder: RunFolder) -> None:
        """The run ends: write what waits, and the latest snapshot."""
        newest = max(self._ring.slots, key=lambda s: s.step, default=None)
        if newest is not None and newest.step not in self._until:
            self._pin(newest, ["end"], newest.step + FOLLOW)
        for slot in self._ring.pinned():
            self._write(slot, folder)
        self.ready_at = NEVER

    def _write(self, slot: Slot, folder: RunFolder) -> None:
        until, reasons = slot.pinned_until, slot.reasons
        slot.pinned_until, slot.reasons = None, []
        begin = self.held.begin
        if until is None or slot.step < begin or slot.step >= self.held.end:
            return
        start = perf_counter()
        last = min(until, self.held.end - 1)
        steps = tuple(_step_record(k, self.held[k], self.boundaries.get(k)) for k in range(slot.step, last + 1))
        path = folder.capsule_path(slot.step)
        whole = replace(slot.state, batch_size=self.batch_size, reasons=tuple(reasons), steps=steps)
        while True:
            try:
                capsule.save(whole, path, room=folder.left() - int(FRAME_SHARE * self._max_bytes))
                break
            except capsule.TooLarge as error:
                if not self.make_room(folder, folder.room() + 1):
                    self._say("capsules-full", slot.step, {"reason": str(error)})
                    return
        self._until[slot.step] = last
        self._delete(self._pins.written(slot.step, path, reasons, perf_counter() - start))
        folder.room()  # counts the capsules anew
        if len(self._until) > 256:
            self._until.pop(next(iter(self._until)))

    def make_room(self, folder: RunFolder, size: int) -> bool:
        """Give capsules up until `size` bytes fit into the folder; returns whether they do."""
        if folder.left() >= size:  # what is left is only ever counted too low: capsules are deleted, too
            return True
        while folder.room() < size:
            given_up = self._pins.make_room()
            if not given_up:
                return False
            self._delete(given_up)
        return True

    def _delete(self, paths: list[Any]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _say(self, name: str, step: int, data: dict[str, object]) -> None:
        if name not in self._said:
            self._said.add(name)
            self._mark(step, name, data)


def lead(last: int) -> int:
    """Steps between the snapshot of an epoch's end and the epoch's last step."""
    return LEAD if last >= 3 * LEAD else last // 3


def _step_record(step: int, held: Step, boundary: Boundary | None) -> StepRecord:
    loss, draws, (epoch, begun, _, hyper), clip = held
    whole = bool(draws) and all(b is not None and (v is None or v == versions_of(b)) for b, v, *_ in draws)
    return StepRecord(
        step=step,
        epoch=epoch,
        index=step - begun if epoch >= 0 else -1,
        n_samples=max(0, n_samples(draws)),
        ids=_ids(sample_ids(draws)),
        hyper=hyper,
        clip=clip[1] if clip[0] == step else None,
        loss=loss,
        rng=draws[0][4] if draws else None,
        batches=tuple(b for b, *_ in draws) if whole else None,
        later_rng=tuple(d[4] for d in draws[1:]) if any(d[4] is not None for d in draws[1:]) else (),
        boundary=boundary,
    )


def _ids(ids: Any) -> np.ndarray | None:
    try:
        return None if ids is None else np.asarray(ids, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
