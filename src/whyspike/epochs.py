"""Replay whole epochs from their boundary, in the recorded order of samples or in another one.

The event that a smooth pattern is takes a whole epoch. A replay brings the network to the end of an epoch, bitwise,
and trains the next one on batches that are drawn again from the dataset by the ids of their samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whyspike import batches, capsule
from whyspike.boundary import Boundary
from whyspike.capsule_file import StepRecord
from whyspike.errors import NotReplayable
from whyspike.frozen import restore_rng, rng_state
from whyspike.loader_order import changes_order, fetch
from whyspike.replay import Replayed, Subject
from whyspike.seams import BASELINE, EpochContext, Intervention, StepContext, StepRule, training_step

PHASES = 8  # measurements of the probe per epoch
# States that tell what a batch costs by its samples alone. A placebo's change of the sawtooth is noise: 13 % (root mean
# square over 12 placebos of 11 pairs each, cases/gru_recommender.py, seeds 0 to 5) with none of them, 6 % with one, 5 %
# with two or three; its mean is -1 %.
EARLIER = 2
HELD_BYTES = 256 << 20  # memory for states at boundaries that no capsule is near


@dataclass(frozen=True)
class EpochWindow:
    """One epoch of the record that can be replayed as a whole, and the newest capsule before it."""

    path: Path
    epoch: int
    first_step: int
    last_step: int
    far: int  # steps from the capsule to the epoch's begin


class Epochs:
    """The epochs of a subject's run that can be replayed.

    Args:
        subject: of which the loader's dataset can be indexed.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        run = subject.run
        self._held: dict[int, capsule.Capsule] = {}  # states at boundaries, by the epoch's first step
        self._held_bytes = 0
        accumulate = run.facts.get("accumulate")
        self._accumulate = accumulate if isinstance(accumulate, int) and accumulate > 0 else 1
        workers = run.facts.get("num_workers")
        self._workers = isinstance(workers, int) and workers > 0
        self._rows: dict[int, slice] = {}
        if run.epoch is not None and run.index is not None and run.sample_ids is not None:
            begins = np.flatnonzero(run.index == 0)
            for begin, end in zip(begins, [*begins[1:], len(run)], strict=True):
                self._rows[int(run.epoch[begin])] = slice(int(begin), int(end))

    # ------------------------------------------------------------------ which epochs

    def missing(self) -> str | None:
        """What an epoch cannot be replayed without, and is not there; None when all is."""
        if self.subject.dataset is None:
            return "a loader with a dataset that can be indexed: rec.batches(DataLoader(…))"
        if not self._rows:
            return "sample ids and epochs: iterate over rec.batches(loader)"
        if self.subject.run.steps_per_epoch is None:
            return "the number of steps per epoch"
        return None

    def windows(self, first: int, last: int, most: int, *, following: int = 1) -> list[EpochWindow]:
        """Up to `most` epochs between two steps, from the second on: the latest of those that are near a capsule.

        Args:
            following: how many recorded epochs each must be the first of.
        """
        if self.missing() is not None:
            return []
        run, found = self.subject.run, []
        starts = sorted((self.subject.capsule(p).step, p) for p in run.capsules)
        for epoch, rows in self._rows.items():
            begin, end = int(run.step[rows.start]), int(run.step[rows.stop - 1])
            near = [(s, p) for s, p in starts if s <= begin]
            if epoch - 1 not in self._rows or not all(self._complete(epoch + k) for k in range(following)):
                continue
            if near and first <= end and begin <= last:
                found.append(EpochWindow(near[-1][1], epoch, begin, end, begin - near[-1][0]))
        # Later epochs are more alike. One that begins more than an epoch after a capsule costs the way there, once.
        period = run.steps_per_epoch or 1
        near_enough = [w for w in found if w.far <= 1.5 * period]
        chosen = near_enough[-most:] if len(near_enough) >= most else sorted(found, key=lambda w: w.far)[:most]
        return sorted(chosen, key=lambda w: w.epoch)

    def _complete(self, epoch: int) -> bool:
        rows = self._rows.get(epoch)
        return rows is not None and rows.stop - rows.start == self.subject.run.steps_per_epoch

    def ids(self, epoch: int) -> list[np.ndarray]:
        """The samples of every batch of a recorded epoch, micro-batches apart."""
        run, k = self.subject.run, self._accumulate
        assert run.sample_ids is not None
        size = max(1, -(-self.subject.batch_size // k))
        found: list[np.ndarray] = []
        for ids in run.sample_ids[self._rows[epoch]]:
            found += [ids] if k == 1 else [ids[a : a + size] for a in range(0, len(ids), size)]
        return found

    # ------------------------------------------------------------------ replays

    def replay(self, window: EpochWindow, intervention: Intervention = BASELINE, *, redraw: int = 0) -> Replayed:
        """Train the epoch again, with an intervention; `intervention.epochs` of them. Call it inside `subject.kept()`.

        Args:
            redraw: seed of what the intervention draws; the same for all arms of a pair.

        Returns:
            The replay from the epoch's first step on; `event_step` is the first step of the epoch to be measured (the
            last one), and `state` is nan between the measurements of the probe, 8 per epoch.

        Raises:
            NotReplayable: the state or the samples cannot be had.
        """
        subject = self.subject
        self._to_boundary(window)
        intervention.begin(subject.model, subject.optimizer)
        before = subject.probe()
        reported: list[float] = []
        state: list[float] = []
        recorded: list[float] = []
        previous = [np.concatenate(self.ids(e)) for e in sorted(self._rows) if e < window.epoch]
        measured = window.first_step
        order: Sequence[np.ndarray] = ()
        for k in range(intervention.epochs):
            epoch = window.epoch + k
            measured = window.first_step + len(reported)
            drawn = self.ids(epoch)
            at = EpochContext(
                epoch=epoch,
                batch_size=max(len(b) for b in drawn),
                previous=tuple(previous),
                rng=np.random.default_rng((redraw, window.epoch, k)),
            )
            order = intervention.order(at, drawn) if changes_order(intervention) else drawn
            previous.append(np.concatenate(order))
            steps = -(-len(order) // self._accumulate)
            probed = {round(steps * j / PHASES) - 1 for j in range(1, PHASES + 1)}
            for index, loss in enumerate(self._train(window, epoch, order, intervention)):
                reported.append(math.nan if loss is None else loss)
                state.append(subject.probe() if index in probed else math.nan)
            recorded += subject.run.loss[self._rows[epoch]].tolist()
        recorded = [*recorded, *[math.nan] * len(reported)][: len(reported)]
        return Replayed(
            first_step=window.first_step,
            event_step=measured,
            reported=tuple(reported),
            state=tuple(state),
            state_before=before,
            recorded=tuple(recorded),
            order=tuple(order),
        )

    def by_samples(self, window: EpochWindow, order: Sequence[np.ndarray]) -> list[float]:
        """What the steps of an order cost by their samples alone: their loss in networks that had not seen the order.

        The mean over the newest capsules that are older than the epoch before the window. How long ago these networks
        had seen a sample says nothing about its place in the order, nor in one that is made from the epoch before.
        Call it inside `subject.kept()`.

        Returns:
            One loss for each step; empty where no capsule is that old.
        """
        subject, k = self.subject, self._accumulate
        before = self._rows.get(window.epoch - 1)
        begin = int(subject.run.step[before.start]) if before is not None else -1
        steps = sorted((subject.capsule(p).step, p) for p in subject.run.capsules)
        old = [p for step, p in steps if 0 < step <= begin][-EARLIER:]
        total = np.zeros(-(-len(order) // k))
        for path in old:
            capsule.restore(subject.capsule(path), subject.model, subject.optimizer, scaler=subject.rule.scaler)
            for index, first in enumerate(range(0, len(order), k)):
                losses, sizes = np.array([one for ids in order[first : first + k] for one in subject.loss_of(ids)]).T
                total[index] += losses @ sizes / sizes.sum()
        return (total / len(old)).tolist() if old else []

    def along(self, window: EpochWindow, phases: Sequence[float]) -> Iterator[int]:
        """Train the epoch as recorded and stop at these fractions of it. Call it inside `subject.kept()`.

        Yields:
            The step that would come next; the network is in the state before it.
        """
        self._to_boundary(window)
        rows = self._rows[window.epoch]
        stops = sorted({round(p * (rows.stop - rows.start)) for p in phases})
        if stops and stops[0] == 0:
            yield window.first_step
        for index, _ in enumerate(self._train(window, window.epoch, self.ids(window.epoch), BASELINE), 1):
            if index == rows.stop - rows.start:
                self._hold(window.last_step + 1)  # the next epoch begins here
            if index in stops:
                yield window.first_step + index
            if not stops or index >= stops[-1]:
                return

    def _train(
        self, window: EpochWindow, epoch: int, order: Sequence[np.ndarray], intervention: Intervention, skip: int = 0
    ) -> Iterator[float | None]:
        """Train an epoch, without its first `skip` steps, and yield the loss of every step, as logged."""
        subject, rows, k = self.subject, self._rows[epoch], self._accumulate
        ids_of = subject.run.sample_ids
        assert ids_of is not None
        held = {s.step: s for s in subject.capsule(window.path).steps}
        clip = next((s.clip for s in reversed(held.values())), None)
        begun = int(subject.run.step[rows.start])
        nominal = max(len(b) for b in order) * k
        for index, first in enumerate(range(skip * k, len(order), k), skip):
            step, row, micro = begun + index, rows.start + index, order[first : first + k]
            record = held.get(step)
            as_recorded = row < rows.stop and np.array_equal(np.concatenate(micro), ids_of[row])
            drawn = self._batches(micro, record if as_recorded else None)
            at = StepContext(
                step=step,
                epoch=epoch,
                index=index,
                n_samples=sum(len(b) for b in micro),
                batch_size=nominal,
                is_event=step >= window.first_step,
                since_event=step - window.first_step if step >= window.first_step else None,
            )
            if record is not None:
                boundary = intervention.boundary(at, record.boundary or Boundary())
                boundary.apply(subject.model, subject.optimizer)
                record.prepare(subject.optimizer)  # its hyperparameters, and the generators if the loader uses them
                boundary.apply_rng()
                clip = record.clip
            else:
                self._set_lr(row)
            rule = StepRule(accumulate=k, clip_grad_norm=clip, scaler=subject.rule.scaler)
            yield training_step(subject.model, subject.optimizer, subject.loss_fn, drawn, at, intervention, rule).loss

    def _batches(self, micro: Sequence[np.ndarray], record: StepRecord | None) -> Iterable[Any]:
        """The batches of a step: those that the capsule holds, or drawn again from the dataset."""
        if record is not None and record.batches:
            return record.drawn()
        before = rng_state() if self._workers else None  # workers draw from generators of their own
        assert self.subject.collate is not None
        drawn = [fetch(self.subject.dataset, self.subject.collate, ids) for ids in micro]
        if before is not None:
            restore_rng(before)
        return drawn

    def _set_lr(self, row: int) -> None:
        """The recorded learning rate of a step: of the first parameter group, the others in proportion."""
        run = self.subject.run
        groups = self.subject.optimizer.param_groups
        now = float(groups[0]["lr"])
        if run.lr is None or row >= len(run.lr) or now == 0 or not math.isfinite(run.lr[row]):
            return
        wanted = float(run.lr[row])
        if wanted == now:
            return
        for number, group in enumerate(groups):
            value = wanted if number == 0 else float(group["lr"]) * wanted / now
            if batches.is_tensor(group["lr"]):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    # ------------------------------------------------------------------ the boundary

    def _to_boundary(self, window: EpochWindow) -> None:
        """Bring the network to the state before an epoch's first step, by training as recorded from a capsule."""
        subject, run = self.subject, self.subject.run
        known = max((s for s in self._held if s <= window.first_step), default=-1)
        start = subject.capsule(window.path)
        state = self._held[known] if known > start.step else start
        capsule.restore(state, subject.model, subject.optimizer, scaler=subject.rule.scaler)
        step = state.step
        while step < window.first_step:
            row = int(np.searchsorted(run.step, step))
            epoch = next(e for e, rows in self._rows.items() if rows.start <= row < rows.stop)
            skip = row - self._rows[epoch].start
            for _ in self._train(window, epoch, self.ids(epoch), BASELINE, skip):
                step += 1
            self._hold(step)
        if step != window.first_step:
            raise NotReplayable(f"the record has a gap before step {window.first_step}")

    def _hold(self, step: int) -> None:
        """Keep the state before an epoch's first step, as far as there is room."""
        if step in self._held:
            return
        subject = self.subject
        state = capsule.capture(subject.model, subject.optimizer, scaler=subject.rule.scaler, step=step)
        self._held_bytes += sum(t.numel() * t.element_size() for t in state.tensors.values())
        self._held[step] = state
        while self._held_bytes > HELD_BYTES and self._held:
            old = self._held.pop(next(iter(self._held)))
            self._held_bytes -= sum(t.numel() * t.element_size() for t in old.tensors.values())
