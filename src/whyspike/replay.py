"""Replay the steps around an event from a capsule, with every seam open to an intervention.

The first backend of the experiment. A replay restores the complete state (weights, buffers, optimizer, scaler, every
random generator, thread count, modes), runs the recorded batches again and measures, after every step, the loss on a
probe set of training samples. What the user's training was before the experiment is put back bitwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from whyspike import batches, capsule, probeset
from whyspike.accumulation import Convention, convention, cut_windows, joined
from whyspike.boundary import Boundary
from whyspike.errors import NotReplayable
from whyspike.excess import JUMP_STEPS
from whyspike.frozen import frozen
from whyspike.loader_order import fetch
from whyspike.seams import BASELINE, Intervention, LossFn, StepContext, StepRule, training_step
from whyspike.tapedloss import TapedLoss
from whyspike.types import Run

if TYPE_CHECKING:
    from whyspike.epochs import Epochs
    from whyspike.record import Recorder

HELD_BYTES = 1 << 25  # of a state that may be held in memory for every event
HELD_TOGETHER = 1 << 29  # of larger states, all of them
CONVENTION_STEPS = 4  # from a cut window on: its own loss shows what is logged, the next ones what was divided
HORIZON = 20  # steps after the event; 90 % of a momentum of .9 is spent after 21 (causes.md C6: ln .1 / ln .9)


@dataclass(frozen=True)
class Window:
    """The steps that one replay runs: from a capsule to some steps after the event."""

    path: Path
    event_step: int
    control_step: int | None  # an ordinary full-size step shortly before the event, for placebos


@dataclass(frozen=True)
class Replayed:
    """What one replay gave: `reported[k]` and `state[k]` belong to step `first_step + k`."""

    first_step: int
    event_step: int
    reported: tuple[float, ...]  # loss as logged, nan where the step was skipped
    state: tuple[float, ...]  # probe loss right after the step
    state_before: float  # probe loss at the capsule
    recorded: tuple[float, ...]  # what the record says for the same steps
    skipped: frozenset[int] = frozenset()  # steps that the intervention left out
    order: tuple[np.ndarray, ...] = ()  # of a replayed epoch: the samples of every micro-batch of the measured one

    @property
    def excess_reported(self) -> tuple[float, ...]:
        """The logged losses, infinite where they became NaN, and NaN only where there was no step."""
        steps = range(self.first_step, self.first_step + len(self.reported))
        return tuple(
            math.inf if math.isnan(v) and k not in self.skipped else v
            for k, v in zip(steps, self.reported, strict=True)
        )

    @property
    def excess_state(self) -> tuple[float, ...]:
        """The probe losses, infinite where they became NaN."""
        return tuple(math.inf if math.isnan(v) else v for v in self.state)

    @property
    def reproduced(self) -> bool:
        """Whether every loss up to the horizon is bitwise that of the record (nan equals nan)."""
        return self.noise == 0.0

    @property
    def noise(self) -> float:
        """Largest relative difference of a replayed loss to the recorded one."""
        return max(map(_difference, self.reported, self.recorded), default=0.0)

    def until(self, horizon: int) -> Replayed:
        """Its steps up to so many after the event."""
        n = self.event_step - self.first_step + horizon + 1
        if n >= len(self.reported):
            return self
        return replace(self, reported=self.reported[:n], state=self.state[:n], recorded=self.recorded[:n])


def _difference(ours: float, theirs: float) -> float:
    """Relative; 0 for the same bits and for nan beside nan."""
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    return abs(ours - theirs) / max(abs(theirs), 1e-300) if math.isfinite(ours - theirs) else math.inf


def _from(window: Window, step: int) -> Path:
    """The name of a window's capsule that begins later, at `step`: it lies in memory."""
    return Path(f"{window.path}#{step}")


class Draws:
    """What interventions take samples from: `draw(n)` gives n other ones, `draw.of(ids)` those of these ids."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __call__(self, n: int) -> Any:
        return self._subject.draw(n)

    def of(self, ids: Iterable[int]) -> Any | None:
        """The batch of these dataset indices, read in this process; None where there is no dataset to index."""
        return self._subject.samples(ids)


class Subject:
    """A training that can be replayed in this process: the live model and optimizer, and what was recorded of them.

    Args:
        dataset, collate: of the user's DataLoader, for drawing other training samples. Without them samples are
            drawn from the recorded batches.
    """

    def __init__(
        self,
        *,
        run: Run,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFn,
        rule: StepRule | None = None,
        dataset: Any = None,
        collate: Callable[[list[Any]], Any] | None = None,
        loader: Any = None,
        seed: int = 0,
    ) -> None:
        self.run, self.model, self.optimizer, self.loss_fn = run, model, optimizer, loss_fn
        self.rule = rule or StepRule()
        self.dataset, self.collate, self.loader = dataset, collate, loader
        self.rng = np.random.default_rng(seed)
        nominal = run.facts.get("accumulate")
        self.convention = Convention(nominal=nominal if isinstance(nominal, int) and nominal > 0 else 1)
        if isinstance(loss_fn, TapedLoss):  # what backward was called on is known, not how it was made
            divided = loss_fn.divisor is not None
            self.convention = Convention(
                nominal=loss_fn.divisor or 1, divides="nominal" if divided else "none", logs="sum"
            )
        self._probe_s: float | None = None
        self._held_bytes = 0
        self._loaded: dict[Path, capsule.Capsule] = {}

    @classmethod
    def of(cls, recorder: Recorder, run: Run) -> Subject | None:
        """What a recorder can replay; None when it has no `loss_fn`, no model or no optimizer."""
        if recorder.loss_fn is None or not isinstance(recorder.model, nn.Module):
            return None
        if not isinstance(recorder.optimizer, Optimizer) or run.batch_size is None:
            return None
        loader = recorder.loader
        indexable = hasattr(loader, "collate_fn") and hasattr(getattr(loader, "dataset", None), "__getitem__")
        sized = indexable and hasattr(loader.dataset, "__len__") and len(loader.dataset) > 0
        return cls(
            run=run,
            model=recorder.model,
            optimizer=recorder.optimizer,
            loss_fn=recorder.loss_fn,
            rule=StepRule(scaler=recorder.scaler),
            dataset=loader.dataset if sized else None,
            collate=loader.collate_fn if sized else None,
            loader=loader,
        )

    def capsule(self, path: Path) -> capsule.Capsule:
        if path not in self._loaded:
            self._loaded[path] = capsule.load(path)
        return self._loaded[path]

    @property
    def batch_size(self) -> int:
        if self.run.batch_size is None:
            raise NotReplayable("the batch size of this run is not known; iterate over rec.batches(loader)")
        return self.run.batch_size

    # ------------------------------------------------------------------ training samples

    @cached_property
    def _pool(self) -> Any:
        """Rows of the recorded batches of the commonest size and form, for loaders that have no dataset to index.

        Batches that are padded to other lengths cannot be joined; the padding value is the user's own.
        """
        groups: dict[tuple[int, ...], list[Any]] = {}
        for path in self.run.capsules:
            for step in self.capsule(path).steps:
                for b in step.batches or ():
                    groups.setdefault((batches.size(b), *batches.form(b)), []).append(b)
        if not groups:
            raise NotReplayable("no batches are stored in the record; watch(..., store_batches=True) stores them")
        return batches.concat(max(groups.values(), key=len)[:64])

    def draw(self, n: int, rng: np.random.Generator | None = None) -> Any:
        """A batch of n random training samples. Every random generator of the process stays as it was."""
        rng = rng or self.rng
        if self.dataset is not None and self.collate is not None:
            size = len(self.dataset)
            rows = rng.choice(size, n, replace=n > size)
            with frozen(self.model):
                return fetch(self.dataset, self.collate, rows)
        size = batches.size(self._pool)
        rows = rng.choice(size, n, replace=n > size)
        return batches.take(self._pool, [int(i) for i in rows], size)

    def samples(self, ids: Iterable[int]) -> Any | None:
        """The batch of these dataset indices, drawn again; None where the loader has no dataset to index."""
        if self.dataset is None or self.collate is None:
            return None
        rows = [int(i) for i in ids]
        with frozen(self.model):
            return fetch(self.dataset, self.collate, rows) if rows else None

    def loss_of(self, ids: Iterable[int]) -> list[tuple[float, int]]:
        """The loss on these samples in eval mode, in batches of the nominal size: (loss, samples) of each.

        Raises:
            NotReplayable: the loader has no dataset to index.
        """
        rows = [int(i) for i in ids]
        if self.dataset is None or self.collate is None:
            raise NotReplayable("the loader has no dataset that can be indexed by a sample's id")
        found = []
        with frozen(self.model):
            for k in range(0, len(rows), self.batch_size):
                piece = rows[k : k + self.batch_size]
                found.append((float(self.loss_fn(self.model, fetch(self.dataset, self.collate, piece))), len(piece)))
        return found

    @cached_property
    def probe_batches(self) -> list[Any]:
        """The probe set: fixed training samples, in pieces of at most the batch size."""
        if self.dataset is None or self.collate is None:
            size = batches.size(self._pool)
            return probeset.pieces(size, self.batch_size, lambda rows: batches.take(self._pool, rows, size))
        dataset, collate = self.dataset, self.collate
        with frozen(self.model):
            return probeset.pieces(len(dataset), self.batch_size, lambda rows: fetch(dataset, collate, rows))

    def probe(self) -> float:
        """The mean loss on the probe set, in eval mode; nothing of the training changes."""
        taped = self.loss_fn.nowhere() if isinstance(self.loss_fn, TapedLoss) else nullcontext()
        with frozen(self.model), taped:
            return float(np.mean([float(self.loss_fn(self.model, b)) for b in self.probe_batches]))

    def lighten(self, seconds: float, least: int) -> None:
        """Keep so much of the probe set that measuring it takes at most so many seconds; `least` samples in any case.

        Measured in processor time. Call it before the first replay: all replays are measured on the same samples.
        """
        pieces = self.probe_batches = self._joined(self.probe_batches, least)
        self.probe()
        start = process_time()
        self.probe()
        each = (process_time() - start) / len(pieces)
        enough = next(
            (k + 1 for k in range(len(pieces)) if sum(map(batches.size, pieces[: k + 1])) >= least), len(pieces)
        )
        self.probe_batches = pieces[: max(enough, int(seconds / each) if each > 0 else len(pieces))]

    def _joined(self, pieces: list[Any], least: int) -> list[Any]:
        """Pieces of `least` samples or more: a wide network takes as long for half as many, and has room for them."""
        n = max(1, -(-least // batches.size(pieces[0])))
        groups = [pieces[k : k + n] for k in range(0, len(pieces) - n + 1, n)]
        try:
            made = [batches.concat(group) for group in groups]
            alike = np.isclose(
                np.mean([self._loss_of(b) for b in made]), np.mean([self._loss_of(b) for g in groups for b in g]), 1e-3
            )
        except (RuntimeError, TypeError, ValueError, NotReplayable):
            return pieces
        return (
            made if alike else pieces
        )  # a loss that compares samples, or sums over them, is not the mean of its parts

    def _loss_of(self, batch: Any) -> float:
        with frozen(self.model):
            return float(self.loss_fn(self.model, batch))

    def seconds_per_probe(self) -> float:
        """How long one measurement of the probe takes."""
        if self._probe_s is None:
            self.probe()
            start = perf_counter()
            self.probe()
            self._probe_s = perf_counter() - start
        return self._probe_s

    # ------------------------------------------------------------------ windows and replays

    @cached_property
    def epochs(self) -> Epochs:
        """The whole epochs that can be replayed, with the boundaries that were reached before."""
        from whyspike.epochs import Epochs

        return Epochs(self)

    def window(self, event_step: int, *, before: bool = False, finite: bool = False) -> Window:
        """The window of the newest capsule from which a step can be replayed.

        Args:
            before: with what happens right before the step: the capsule is of an earlier step.
            finite: a capsule whose weights are all finite, where there is one.

        Raises:
            NotReplayable: no capsule with stored batches covers the step.
        """
        found: dict[int, Path] = {}
        for path in self.run.capsules:
            held = [s.step for s in self.capsule(path).steps if s.batches]
            if held and held[0] + before <= event_step <= held[-1]:
                found[held[0]] = path
        if not found:
            raise NotReplayable(f"no capsule covers step {event_step}")
        early = [step for step in found if step + JUMP_STEPS <= event_step] if before else []
        if finite:
            early = [step for step in found if self.capsule(found[step]).finite]
        best = found[max(early or found)]
        full = [s.step for s in self.capsule(best).steps if s.step < event_step and s.n_samples == self.batch_size]
        return Window(best, event_step, full[-1] if full else None)

    def begun(self, window: Window, lead: int) -> Window:
        """The same window from `lead` steps before its event on. The steps before are run once, unchanged.

        Call it inside `kept()`. A window that begins later stays as it is, and so does that of a large network, once
        its states would fill the memory.
        """
        held, first = self.capsule(window.path), window.event_step - lead
        if held.step >= first:
            return window
        if _from(window, first) not in self._loaded:
            self.at(window, first)
            self._hold(window, first)
        return self.held(window, first) or window

    def _hold(self, window: Window, step: int) -> None:
        """Keep the state before `step`, at which the model is, if there is room."""
        held, key = self.capsule(window.path), _from(window, step)
        size = sum(t.numel() * t.element_size() for t in held.tensors.values())
        if key in self._loaded or (size > HELD_BYTES and self._held_bytes + size > HELD_TOGETHER):
            return
        self._held_bytes += size if size > HELD_BYTES else 0
        here = capsule.capture(self.model, self.optimizer, scaler=self.rule.scaler, step=step)
        later = tuple(s for s in held.steps if s.step >= step)
        self._loaded[key] = replace(here, batch_size=held.batch_size, steps=later)

    def held(self, window: Window, step: int) -> Window | None:
        """The same window from a step on whose state a replay has held."""
        key = _from(window, step)
        return replace(window, path=key) if key in self._loaded else None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the model, the optimizer and every generator back as they were, bitwise."""
        before = capsule.capture(self.model, self.optimizer, scaler=self.rule.scaler)
        try:
            with self.loss_fn.kept() if isinstance(self.loss_fn, TapedLoss) else nullcontext():
                yield
        finally:
            capsule.restore(before, self.model, self.optimizer, scaler=self.rule.scaler)

    def learn_convention(self) -> None:
        """Find out by replays how the loop treats a window that an epoch cut short. Call it inside `kept()`."""
        nominal = self.convention.nominal
        known = isinstance(self.loss_fn, TapedLoss) and self.loss_fn.divisor is None
        for path in self.run.capsules if nominal > 1 and not known else ():
            steps = self.capsule(path).steps
            cut = next(cut_windows(steps, nominal), None)
            if cut is not None:
                window = Window(path, cut, None)
                self.convention = convention(nominal, lambda made, w=window: self._noise_under(made, w))
                return

    def _noise_under(self, tried: Convention, window: Window) -> float:
        """Largest relative difference to the record from the cut window on, if the loop had this convention."""
        before, self.convention = self.convention, tried
        try:
            made = [
                (loss, record.loss)
                for record, loss in self.steps(window, BASELINE, None, stop=window.event_step + CONVENTION_STEPS)
                if record.step >= window.event_step
            ]
        finally:
            self.convention = before
        return max((_difference(math.nan if ours is None else ours, theirs) for ours, theirs in made), default=math.inf)

    def split(self, window: Window) -> tuple[tuple[Any, ...], Any | None]:
        """The micro-batches of a window's step, and their samples as one batch; None where they cannot be joined."""
        record = next(s for s in self.capsule(window.path).steps if s.step == window.event_step)
        micro = tuple(record.batches or ())
        return micro, joined(micro, lambda: None if record.ids is None else self.samples(record.ids))

    def at(self, window: Window, step: int) -> None:
        """Bring the model to the state before `step`, by replaying unchanged. Call it inside `kept()`."""
        for _ in self.steps(window, BASELINE, None, stop=step):
            pass
        self._stands(step)

    def _stands(self, step: int) -> None:
        """The next loss is that of this step."""
        if isinstance(self.loss_fn, TapedLoss):
            self.loss_fn.stands(step)

    def replay(
        self,
        window: Window,
        intervention: Intervention = BASELINE,
        *,
        redraw: int | None = None,
        horizon: int = HORIZON,
        hold: int | None = None,
        probed_from: int | None = None,
        enough: Callable[[Sequence[float]], bool] | None = None,
    ) -> Replayed:
        """Run a window with an intervention. Call it inside `kept()`.

        Args:
            redraw: seed of another continuation: the batches after the event are other training samples. None
                replays the recorded ones.
            hold: a step whose state before it is held, so that other replays may begin there.
            probed_from: the first step after which the probe is measured, where it is not wanted before; nan there.
            enough: given the probe losses so far, whether the replay may end there. Asked where the probe is measured.
        """
        capsule.restore(self.capsule(window.path), self.model, self.optimizer, scaler=self.rule.scaler)
        before = self.probe() if probed_from is None else math.nan
        reported, state, recorded = [], [], []
        skipped: set[int] = set()
        first = None
        for record, loss in self.steps(window, intervention, redraw, stop=window.event_step + horizon + 1):
            first = record.step if first is None else first
            if hold is not None and record.step + 1 == hold:
                self._hold(window, hold)
            reported.append(math.nan if loss is None else loss)
            if loss is None:
                skipped.add(record.step)
            probed = probed_from is None or record.step >= probed_from
            state.append(self.probe() if probed else math.nan)
            recorded.append(record.loss)
            if probed and enough is not None and enough(state):
                break
        if first is None:
            raise NotReplayable(f"the capsule before step {window.event_step} holds no batches")
        values = (tuple(reported), tuple(state), before, tuple(recorded), frozenset(skipped))
        return Replayed(first, window.event_step, *values)

    def steps(
        self, window: Window, intervention: Intervention, redraw: int | None, stop: int
    ) -> Iterator[tuple[capsule.StepRecord, float | None]]:
        """Run a window up to the step `stop`: every recorded step with the loss that it has now. As `replay`."""
        held = self.capsule(window.path)
        capsule.restore(held, self.model, self.optimizer, scaler=self.rule.scaler)
        intervention.begin(self.model, self.optimizer)
        rng = np.random.default_rng(redraw)
        for record in held.steps:
            if record.step >= stop or not record.batches:
                return
            at = StepContext(
                step=record.step,
                epoch=record.epoch,
                index=record.index,
                n_samples=record.n_samples,
                batch_size=self.batch_size,
                is_event=record.step == window.event_step,
                is_control=record.step == window.control_step,
                since_event=record.step - window.event_step if record.step >= window.event_step else None,
                event_step=window.event_step,
            )
            drawn: Iterable[Any] = record.drawn()
            if redraw is not None and record.step > window.event_step:
                drawn = [self.draw(batches.size(b), rng) for b in record.batches]
            boundary = intervention.boundary(at, record.boundary or Boundary())
            boundary.apply(self.model, self.optimizer)
            record.prepare(self.optimizer)  # hyperparameters of the step, and the generators if the loader uses them
            boundary.apply_rng()
            rule = self.convention.rule(len(record.batches))
            rule = replace(rule, clip_grad_norm=record.clip, scaler=self.rule.scaler)
            self._stands(record.step)
            try:
                result = training_step(self.model, self.optimizer, self.loss_fn, drawn, at, intervention, rule)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                # What was put into the batch is nothing that this network or loss can take.
                raise NotReplayable(
                    f"with {intervention.words}, step {record.step} raised {type(error).__name__}: {error}"
                ) from error
            yield record, result.loss
