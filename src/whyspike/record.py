"""Recording a training at the seams of its steps, without changing it.

The recorder looks at the batch when it is drawn, at the gradients before the update, at the weights after it, and at
the loss when the user hands it over. It never raises into the user's loop: an error of its own is warned of once,
written to whyspike.log in the run folder, and ends the recording, not the training. Everything that draws random
numbers, changes a mode or a buffer is put back, so the weights after training are bitwise the same without it.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf, isnan
from pathlib import Path
from statistics import median
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches, clipwatch, probeset
from whyspike.boundarywatch import BoundaryWatch
from whyspike.cliporder import ClipOrder, unscaled_by
from whyspike.errors import BadTraining
from whyspike.frozen import rng_state
from whyspike.gradwatch import GradWatch
from whyspike.handout import Handout
from whyspike.heldsteps import Hold
from whyspike.hyper import Hyperparameters
from whyspike.keeper import BEHIND, Keeper
from whyspike.loader_ids import compact, length, loader_facts
from whyspike.lossvalue import describe, number, number_or_later
from whyspike.measure import MakeProbe, Measures
from whyspike.passes import Batches, Evaluating
from whyspike.recordwriter import RecordWriter
from whyspike.rngnotes import RngNotes
from whyspike.runfolder import LOG, RunFolder
from whyspike.runheader import header
from whyspike.scalewatch import ScaleWatch
from whyspike.seams import LossFn
from whyspike.signals import MEASURED, OWN
from whyspike.stretch import Context, Draw, Step, Stretch
from whyspike.strides import counts

if TYPE_CHECKING:
    from whyspike.types import Diagnosis

DISABLE = "WHYSPIKE_DISABLE"
FLUSH_S = 1.0  # a killed process loses no more than this
DRAIN_STEPS = 64  # losses are read so many steps at a time where there is no Keeper that says it
STEADY_STEPS = 64  # steps without a change after which the lr is read when a batch is drawn, not at every update
ALARM = 1.3  # a loss this much above the recent ones is looked at without waiting
SHORT_EPOCH = 8  # steps; its end and its begin are half of it
EVENT_APART = 30  # steps between two events at least; nearer ones are one (detect.MERGE_STEPS)
MOST_MICRO = 256  # micro-batches of one step that are kept; more means that rec.step() is not called
NAN = float("nan")


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    loss_fn: LossFn | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    path: str | Path | None = None,
    name: str | None = None,
    store_batches: bool = True,
    max_bytes: int = 1 << 30,
    closely: bool = False,
    resume: int | None = None,
) -> Recorder:
    """Record a training.

    Use it as a context manager around the training loop, iterate over `rec.batches(loader)`, and call `rec.step(loss)`
    once after every optimizer update. The batches that follow a kept snapshot are stored in the run folder, unless
    `store_batches=False`.

    Args:
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch, as logged. Without it the record has no
            probe, and nothing can be proven by a replay.
        scheduler, scaler: kept in the snapshots when given.
        path: the run folder; `whyspike-runs/<name>-<time>` when not given. It is made when the first step is
            recorded, and an existing run is never written into.
        name: the class name of the model when not given.
        store_batches: whether snapshots hold the batches that follow them.
        max_bytes: the run folder does not grow beyond this.
        closely: for an experiment, where what recording costs does not matter: signals and snapshots at fixed strides,
            and a probe of more samples, so that what happens in the network is seen whether the plot shows it or not.
            Samples are drawn from the dataset once more for it.
        resume: the training goes on from a checkpoint: the number of updates made before. The record goes on in the
            run folder `path`; what it holds beyond that update is left out when it is read.
    """
    return Recorder(
        model,
        optimizer,
        loss_fn=loss_fn,
        scheduler=scheduler,
        scaler=scaler,
        path=path,
        name=name,
        store_batches=store_batches,
        max_bytes=max_bytes,
        closely=closely,
        resume=resume,
    )


class Recorder:
    """Records one training; made by `watch`. All its methods are safe to call at any time, also after `close`."""

    # What an ordinary step touches lies together, and not in a dict of sixty entries, which the training has pushed out
    # of the caches each time.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_alarm",
        "_attention",
        "_clip",
        "_context",
        "_draws",
        "_flush_at",
        "_handout",
        "_hold",
        "_keeper",
        "_look",
        "_lr0",
        "_nominal",
        "_off",
        "_scale",
        "_step",
        "_steps",
        "optimizer",
    )

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: LossFn | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        path: str | Path | None = None,
        name: str | None = None,
        store_batches: bool = True,
        max_bytes: int = 1 << 30,
        closely: bool = False,
        resume: int | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.scheduler, self.scaler = scheduler, scaler
        self.loader: Any = None  # the loader of the training, once it is iterated over
        self.facts: dict[str, object] = {}  # what else the header says of the training, if set before the first step
        self.learned: dict[str, object] = {}  # the same, of what is known at the end alone
        self._off = os.environ.get(DISABLE, "").lower() not in ("", "0", "false")
        self._closed = False
        self._cpu_begun = process_time()
        self._cpu_closed: float | None = None
        self._wanted_path = None if path is None else Path(path)
        self._name = name or type(model).__name__
        self._store_batches, self._max_bytes, self._closely = store_batches, max_bytes, closely
        self._resume = resume if path is not None else None
        self._warned: set[str] = set()
        self._folder: RunFolder | None = None
        self._undo: list[Any] = []
        self._handout = Handout()
        if not self._off:
            try:
                self._start()
            except Exception as error:
                self._fail(error)

    def _start(self) -> None:
        self._writer = RecordWriter(first=self._resume or 0)
        self._rng = RngNotes()
        self._keeper: Keeper | None = None
        self._between: BoundaryWatch | None = None  # what happens between the steps
        self._left: GradWatch | None = None  # whether gradients are zeroed
        self._scale = None if self.scaler is None else ScaleWatch(self.scaler, self._writer.mark)
        self._detector: Any = None
        self._dense = False
        self._probe_begun = False  # a closer one, after the training had
        # the step that is being built
        self._step = self._resume or 0
        self._draws: list[Draw] | tuple[()] = ()
        self._context: Context = (-1, 0, NAN, None)
        self._clip: tuple[int, float, float] = (-1, NAN, NAN)
        self._clips = ClipOrder(self._writer.mark)
        self._steps: list[Step] = []  # not drained yet
        self._attention = 0  # the step at whose end something else than appending is due
        self._look = True  # the next batch needs more than appending
        self._hold: Hold | None = None  # HeldSteps.ordinary
        self._next_snapshot = 0
        # where the loop stands
        self._passes = 0
        self._evaluating = 0
        self._steps_per_epoch: int | None = None
        self._batches_per_epoch: int | None = None
        self._micro_per_step = 1
        self._micros: Counter[int] = Counter()  # steps by their number of micro-batches
        self._nominal = -1  # samples of an ordinary micro-batch; -1 when not known yet
        # the hyperparameters, as they were last read
        self._hyper = Hyperparameters()
        self._lrs: list[Any] = []
        self._lr0: Any = None
        self._pre_hook: Any = None
        self._updating = False
        self._hook_until = 0
        self._hyper_marks = 0
        # what happens now and then
        self._events = 0
        self._last_event = -EVENT_APART - 1
        self._recent: deque[float] = deque(maxlen=64)
        self._alarm = inf
        self._drain_at = BEHIND[0]
        self._begun = monotonic()
        self._flush_at = self._begun + FLUSH_S
        self._drained = (0.0, 0)  # time and step of the last drain
        self._paces: deque[float] = deque(maxlen=15)  # seconds per step, of the latest drains

        is_module, trains = isinstance(self.model, nn.Module), isinstance(self.optimizer, Optimizer)
        if not is_module:
            self._warn(
                f"watch() was given {type(self.model).__name__} as the model; it needs the torch.nn.Module that is "
                "trained: watch(model, optimizer). The loss is recorded, nothing else"
            )
        elif not any(p.requires_grad for p in self.model.parameters()):
            self._warn(
                f"the model {type(self.model).__name__} has no parameter that requires a gradient, so only the loss is "
                "recorded; give watch() the module that the optimizer trains"
            )
        if is_module and not trains:
            self._warn(
                f"watch() was given {type(self.optimizer).__name__} as the optimizer; it needs the "
                "torch.optim.Optimizer whose step() is called: watch(model, optimizer). Gradients, lr and snapshots "
                "are not recorded"
            )
        # A forward pass that not every process makes may hang all of them.
        loss_fn = self.loss_fn if is_module and not _several_processes() else None
        optimizer = self.optimizer if is_module and trains else None
        self._measures = Measures(self.model, optimizer, loss_fn, self._writer, closely=self._closely)
        if is_module and trains:
            self._keeper = Keeper(
                self.model,
                self.optimizer,
                self.scheduler,
                self.scaler,
                max_bytes=self._max_bytes,
                store_batches=self._store_batches,
                mark=self._writer.mark,
                closely=self._closely,
            )
            self._between = BoundaryWatch(
                self.model,
                self.optimizer,
                mark=self._writer.mark,
                now=self._now,
                wake=self._wake,
                adopt=self._adopt,
            )
            self._keeper.boundaries = self._between.settled
            self._left = GradWatch(self.optimizer, self._writer.mark)
            self._undo += [self._between.let_go, self._left.end]
            self._read_hyper()
            self._hook(True)
            self._undo += [lambda: self._hook(False), self._measures.let_go, clipwatch.listen(self._clipped)]

    # ------------------------------------------------------------------ what the user calls

    @property
    def path(self) -> Path | None:
        """The run folder; None before the first step is recorded, or when recording is off."""
        return self._folder.path if self._folder is not None else None

    @property
    def training_s(self) -> float:
        """Processor time of this process since the recorder was made, until recording ended or now."""
        return (process_time() if self._cpu_closed is None else self._cpu_closed) - self._cpu_begun

    @property
    def recording(self) -> bool:
        """Whether steps are being recorded: not disabled, not closed, no error so far."""
        return not self._off

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._close("end" if kind is None else kind.__name__)

    def close(self) -> None:
        """Write what is left and let go of the model and the optimizer's hooks. May be called more than once."""
        self._close("end")

    def batches(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The loader itself, its batches noted on their way. One pass over it is one epoch."""
        return loader if self._off else Batches(self, loader)

    def step(self, loss: Any) -> None:
        """Record one step. Call it once per optimizer update, after `optimizer.step()`.

        Args:
            loss: the loss as you log it: a scalar tensor, or a number.
        """
        if self._off:
            return
        try:
            if type(loss) is float:
                value = loss
            elif type(loss) is torch.Tensor and loss.is_cpu:
                value = loss.item()
            else:
                value = number_or_later(loss)
            if self._handout.noted:
                self._settle()
            entry = (value, self._draws, self._context, self._clip)
            self._draws = ()
            self._steps.append(entry)
            if self._keeper is not None:
                self._keeper.held.steps.append(entry)
            self._step = step = self._step + 1
            if self._scale is not None:
                self._scale.after_step(step - 1)
            if (
                step >= self._attention
                or monotonic() >= self._flush_at
                or (type(value) is float and not value <= self._alarm)
            ):
                self._attend(step, value)
        except Exception as error:
            self._fail(error, loss)

    def evaluating(self) -> Evaluating:
        """A context manager around an evaluation: loaders iterated over inside are not the training's."""
        return Evaluating(self)

    def log(self, **values: Any) -> None:
        """Keep other numbers in the record, as signals at the last recorded step."""
        if self._off:
            return
        try:
            step = max(0, self._now() - 1)
            for name, value in values.items():
                try:
                    found = number(value)
                except BadTraining:
                    self._warn(
                        f"rec.log({name}=…) was given {describe(value)}; it keeps numbers: rec.log({name}=float(…))"
                    )
                    continue
                self._writer.point(OWN + name if name in MEASURED else name, step, found)
        except Exception as error:
            self._fail(error)

    def diagnose(self, prove: bool = False) -> Diagnosis:
        """Diagnose what was recorded so far; with prove=True by replaying it with one thing changed."""
        from whyspike.pipeline import diagnose_recorder

        self.flush()
        return diagnose_recorder(self, prove=prove)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside: what passes through the seams there is not the user's training."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before
            if not before and self._between is not None:
                self._between.forget()

    def flush(self) -> None:
        """Write everything recorded so far to the run folder."""
        if not self._off:
            try:
                self._settle()
                self._drain(flush=True)
            except Exception as error:
                self._fail(error)

    # ------------------------------------------------------------------ the batch is drawn

    def _epoch_begins(self, loader: Any) -> None:
        self._settle()
        if self.loader is None:
            self.loader = loader
            self.facts |= loader_facts(loader)
            size = self.facts.get("batch_size")
            self._set_nominal(size if isinstance(size, int) else -1)
            if self._closely:
                self._choose_probe(loader)
        self._context = (self._passes, self._step, *self._context[2:])
        self._passes += 1
        self._draws = ()
        self._look_closer()
        self._batches_per_epoch = length(loader)
        self._rng.epoch_begins()
        if self._keeper is not None:
            self._keeper.epoch_begins(self._step, self._last_index())
        if self._between is not None:
            self._between.epoch_begins()

    def _choose_probe(self, loader: Any) -> None:
        """A probe set of more samples than a batch has, where the loader has a dataset to draw them from."""
        pieces = probeset.of(loader, self.model) if self._measures.gathering else None
        if pieces:
            self._measures.probe_set(pieces)
            samples = sum(map(_size, pieces))
            self._dense = samples >= probeset.DENSE
            self.facts |= {"dense_probe": self._dense, "probe_samples": samples}

    def begin_probe(self, make: MakeProbe) -> None:
        """Measure the network from here on, where no `loss_fn` was given: see `Measures.begin_probe`.

        On batches of the training, for a dataset that is read once more may notice it.
        """
        if not self._off:
            most = min(probeset.SAMPLES, max(probeset.LEAST, 4 * max(0, self._nominal)))
            self._measures.begin_probe(make, most if self._closely else probeset.LEAST)
            self._probe_begun = self._closely
            self._look_closer()  # at the batches that it is made of

    def _epoch_ends(self, finished: bool) -> None:
        self._settle()
        epoch, steps = self._context[0], self._step - self._context[1]
        if not steps and not (self._draws and finished):
            self._passes -= 1  # a pass without a step: an evaluation that was not announced
        elif finished and not self._draws:
            self._steps_per_epoch = steps
            self._writer.mark(self._step, "epoch", {"epoch": epoch, "steps": steps})
            if self._between is not None:
                self._between.epoch_ends(monotonic() - self._begun)
        else:
            self._writer.mark(self._step, "epoch-cut", {"epoch": epoch, "steps": steps, "left_over": len(self._draws)})
        self._rng.epoch_ends()

    def _set_nominal(self, n: int) -> None:
        self._nominal = n
        if self._keeper is not None:
            self._keeper.batch_size = n if n >= 0 else None

    def _ordinary(self, batch: Any, rows: Any) -> bool:
        """Note a batch that needs nothing but appending: the only one of its step, as large as the others.

        Args:
            rows: its dataset indices, as the sampler handed them out.

        Returns:
            Whether it was such a one; else it is for `_drawn`.
        """
        hold = self._hold
        if self._look or self._draws or len(rows) != self._nominal or hold is None:
            return False
        held = hold(batch, self._step)
        if held is None:
            return False
        if (lr := self.optimizer.param_groups[0]["lr"]) is not self._lr0:
            self._new_lr(lr)
        self._draws = [(*held, compact(rows), self._nominal, None)]
        return True

    def _catch_up(self) -> None:
        """As `_settle`, where an error must not get into the training."""
        if self._handout.noted:
            try:
                self._settle()
            except Exception as error:
                self._fail(error)

    def _settle(self) -> None:
        """Note the batches that were handed out without a look, and the steps that were made with them."""
        handout, look = self._handout, self._look
        self._look = False  # what wants a look since then wants it of the next batch
        if handout.losses:
            self._append_made()
        for at in list(handout.noted):  # more than one in a step: micro-batches
            batch, rows = handout.read(at)
            if not self._ordinary(batch, rows):
                self._drawn(batch, compact(rows), None)
        self._look = look or self._look

    def _append_made(self) -> None:
        """Append the steps that were made with such batches, each with one of them."""
        handout, hold, n, keeper = self._handout, self._hold, self._nominal, self._keeper
        assert hold is not None
        assert keeper is not None
        losses, handout.losses = handout.losses, []
        for at, value in zip(list(handout.noted), losses, strict=False):
            batch, rows = handout.read(at)
            held = hold(batch, self._step) if len(rows) == n else None
            if held is None:
                self._drawn(batch, compact(rows), None)
            else:
                self._draws = [(*held, compact(rows), n, None)]
            entry = (value, self._draws, self._context, self._clip)
            self._draws = ()
            self._steps.append(entry)
            keeper.held.steps.append(entry)
            self._step += 1
        if self._step >= self._attention:
            self._attend(self._step, losses[-1])

    def _now(self) -> int:
        """The number of the step that is being made."""
        self._catch_up()
        return self._step

    def _look_closer(self) -> None:
        """The next batch needs more than appending."""
        self._look = True
        self._handout.stop()

    def _drawn(self, batch: Any, ids: Any, before: Any) -> None:
        """A batch was drawn that needs more than appending."""
        keeper, draws, step = self._keeper, self._draws, self._step
        if not hasattr(ids, "__len__"):  # a loader without automatic batching hands out single indices
            ids = [ids]
        if type(ids) is not array:  # a sampler may hand out tensors, or what is no integer
            ids = _integers(ids)
        elif not ids:
            ids = None
        n = len(ids) if ids is not None else _size(batch)
        if keeper is not None and (lr := self.optimizer.param_groups[0]["lr"]) is not self._lr0:
            self._new_lr(lr)
        kept, versions = (
            keeper.held.hold(batch, self._step) if keeper is not None and len(draws) < MOST_MICRO else (None, None)
        )
        if type(draws) is list:
            draws.append((kept, versions, ids, n, self._rng.note_more(before)))
            return
        if self._nominal < 0:
            self._set_nominal(n)
        elif n != self._nominal and n >= 0 and self._measures.odd_batch(step):
            self._attention = 0
            self._hook_if_needed(step)
        self._draws = [(kept, versions, ids, n, self._rng.note(step, before))]
        if keeper is not None:
            self._hold = keeper.held.ordinary
        self._snapshot(step)
        self._measures.gather(batch, n)
        if self._measures.wanted and self._left is not None and self._left.wanted:
            self._left.begin()
        self._look = (
            self._measures.gathering
            or self._rng.draws
            or self._rng.compare
            or self._hold is None
            or type(ids) is not array
        )

    def _snapshot(self, step: int) -> None:
        """Take one before this step, where one is due."""
        keeper = self._keeper
        if keeper is None:
            return
        if step >= keeper.next_step:
            index, last = step - self._context[1], self._last_index()
            if keeper.due(step, index, last):
                keeper.take(step, index, last, monotonic() - self._begun)
                self._drain_by_ready()
                self._rng.look_again(step, step // keeper.stride.every)
        self._next_snapshot = keeper.next_step
        self._attention = min(self._attention, self._next_snapshot)

    def _begins(self) -> Any:
        """A forward pass begins on a batch that no loader drew, and that is known when its loss is: see `_given`.

        Returns:
            The generators, as they are.
        """
        if not self._off and not self._draws:
            self._snapshot(self._step)
        return rng_state()

    def _given(self, batch: Any, rng: Any) -> None:
        """The batch of the forward pass that has ended, and what `_begins` returned when it began."""
        keeper, draws, n = self._keeper, self._draws, _size(batch)
        kept, versions = (
            keeper.held.hold(batch, self._step) if keeper is not None and len(draws) < MOST_MICRO else (None, None)
        )
        if self._nominal < 0:
            self._set_nominal(n)
        self.learned["step_size"] = self._nominal * max(self._micro_per_step, len(draws) + 1)
        self._draws = [*draws, (kept, versions, None, n, rng)]
        self._measures.gather(batch, n)

    def _last_index(self) -> int | None:
        """The index of the last step of this epoch, as far as it can be foreseen."""
        if self._batches_per_epoch is not None:
            return (self._batches_per_epoch - 1) // self._micro_per_step
        return self._steps_per_epoch - 1 if self._steps_per_epoch else None

    # ------------------------------------------------------------------ the update

    def _hook(self, wanted: bool) -> None:
        """Have `_before_update` called before the update, or not: a hook costs every step that does not need it."""
        if wanted and self._pre_hook is None:
            self._pre_hook = self.optimizer.register_step_pre_hook(self._before_update)
        elif not wanted and self._pre_hook is not None and not self._updating:
            self._pre_hook.remove()
            self._pre_hook = None

    def _hook_if_needed(self, step: int) -> None:
        # A constant lr is looked at when a batch is drawn. One that changes is read at the update itself.
        if self._keeper is not None:
            wanted = self._measures.wanted or (self._between is not None and self._between.wanted)
            self._hook(wanted or step <= self._hook_until or len(self._lrs) > 1 or self._passes == 0)

    def _wake(self) -> None:
        """Something has happened between two steps: the next batch and the next update are looked at."""
        if not self._off:
            self._look_closer()
            self._hook(True)
            self._attention = 0  # and no further one

    def _adopt(self, optimizer: Optimizer) -> None:
        """The user goes on with another optimizer over the same parameters; it is at its first update."""
        if self._off or self._keeper is None:
            return
        self._hook(False)
        self.optimizer = optimizer
        self._measures.adopt(optimizer)
        if self._left is not None:
            self._left.adopt(optimizer)
        self._keeper.adopt(optimizer)
        self._lrs = []
        self._before_update(optimizer, (), {})
        self._attention = 0  # its hook is set once its own are not running

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Called before `optimizer.step()`; with a closure, which makes the gradients, once that has run."""
        if self._off:
            return None
        self._catch_up()
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        if callable(given):
            return _with_closure(args, kwargs, _after_first(given, lambda: self._gradients_ready(optimizer)))
        return self._gradients_ready(optimizer)

    def _gradients_ready(self, optimizer: Optimizer) -> None:
        try:
            self._clips.updated = self._step
            groups = optimizer.param_groups
            if len(groups) != len(self._lrs) or any(g["lr"] != lr for g, lr in zip(groups, self._lrs, strict=True)):
                self._read_hyper()
            if self._between is not None and self._between.wanted:
                found = self._between.before_update(self._step, len(self._draws))
                if found is not None and self._keeper is not None:
                    self._keeper.boundary(self._step, found, monotonic() - self._begun)
                    self._next_snapshot = self._keeper.next_step
                    self._attention = min(self._attention, self._next_snapshot)
                    self._drain_by_ready()
            if self._measures.wanted:
                self._measures.before_update(self._step)
                if self._left is not None:
                    self._left.before_update(self._step)
        except Exception as error:
            self._updating = True  # a hook must not be removed while hooks run; it does nothing from now on
            self._fail(error)
            self._updating = False

    def _clipped(self, parameters: Any, kind: str, limit: Any, norm: Any) -> None:
        norms = self._measures.norms
        if self._off or norms is None:
            return
        try:
            if self._handout.noted:
                self._settle()
            one = parameters if isinstance(parameters, torch.Tensor) else next(iter(parameters), None)
            if one is None or not any(one is p for p in norms.parameters):
                return  # of another model
            if kind == "norm":
                norm, limit = norm.detach(), float(limit)
                size = norm.item() if norm.is_cpu else NAN
                hooked = self._pre_hook is not None
                acts = self._clips.clipped(self._step, limit, size, hooked, unscaled_by(self.scaler, self.optimizer))
                if acts is None:
                    return  # the update is made: nothing of it was clipped
                self._clip = (self._step, acts, size)
                if not norm.is_cpu:
                    self._measures.later("clip_norm", self._step, norm)
            elif "clip-value" not in self.facts:
                self.facts["clip-value"] = float(limit)
                self._writer.mark(self._step, "clip-value", {"clip_value": float(limit)})
        except Exception as error:
            self._fail(error)

    def _new_lr(self, lr: Any) -> None:
        """The first group has another lr than before, or another number of the same value."""
        if type(lr) is float and len(self._lrs) == 1 and lr == self._lr0:
            self._lr0 = lr
        else:
            self._read_hyper()
            self._hook_if_needed(self._step)

    def _read_hyper(self) -> None:
        groups = self.optimizer.param_groups
        self._hook_until = self._step + STEADY_STEPS
        self._lrs = [g["lr"].clone() if isinstance(g["lr"], torch.Tensor) else g["lr"] for g in groups]
        self._lr0 = self._lrs[0]
        changed = self._hyper.read(self.optimizer)
        self._context = (*self._context[:2], float(self._lr0), self._hyper.now)
        if changed:
            if counts(self._hyper_marks, 64):
                self._writer.mark(self._step, "hyperparameters", {"groups": list(self._hyper.now or ())})
            self._hyper_marks += 1

    # ------------------------------------------------------------------ after the step

    def _attend(self, step: int, value: Any) -> None:
        """A step has ended after which something is due; `step` is the next one."""
        measures = self._measures
        if measures.wanted:
            if self._left is not None:
                self._left.end()
            failed = measures.after_step(step - 1)
            if failed is not None:
                self._warn(f"{failed}. The training is recorded without a probe")
        if step >= measures.due:
            measures.plan(step)
        alarmed = type(value) is float and not value <= self._alarm
        if step >= self._drain_at or alarmed or monotonic() >= self._flush_at:
            self._drain()
        if step >= self._next_snapshot or (measures.wanted and self._left is not None and self._left.wanted):
            self._look = True
        if self._look:
            self._handout.stop()
        self._hook_if_needed(step)
        self._attention = step + 1 if measures.wanted else min(self._drain_at, measures.due, self._next_snapshot)

    def _drain(self, *, flush: bool = False) -> None:
        """Read the losses, ask the detector, and write what is due."""
        now, keeper = monotonic(), self._keeper
        if self._steps:
            stretch = self._take_steps()
            self._writer.steps(stretch)
            self._measures.read()
            if self._scale is not None:
                self._scale.read()
            if keeper is not None:
                keeper.follow(stretch)
                self._hold = keeper.held.ordinary
                if self._hold is None:
                    self._look_closer()
            self._detect(stretch, now)
            self._recent.extend(stretch.loss)
            highest = max(self._recent)
            self._alarm = highest * ALARM if highest > 0 else inf
            since, step = self._drained
            if since:
                self._paces.append((now - since) / max(1, self._step - step))
            self._drained = (now, self._step)
            if self._between is not None:
                self._between.look(self._step)
            self._measures.adapt(self._step, [] if keeper is None else [keeper.stride], list(self._paces))
        if keeper is not None and self._step >= keeper.ready_at:
            keeper.write_ready(self._need_folder())
        if flush or now >= self._flush_at or self._writer.full:
            self._flush()
            self._flush_at = now + FLUSH_S
        self._drain_at = self._step + (DRAIN_STEPS if keeper is None else keeper.behind)
        self._drain_by_ready()

    def _drain_by_ready(self) -> None:
        """Be there when the last step of a pinned snapshot has ended, for its batches are not held for long."""
        if self._keeper is not None:
            self._drain_at = min(self._drain_at, self._keeper.ready_at)
            self._attention = min(self._attention, self._drain_at)

    def _take_steps(self) -> Stretch:
        """The steps that are not drained yet."""
        steps, self._steps = self._steps, []
        self._micros.update([len(s[1]) or 1 for s in steps])
        self._micro_per_step = self._micros.most_common(1)[0][0]  # the last step of an epoch may have fewer
        return Stretch(self._step - len(steps), steps)

    def _detect(self, stretch: Stretch, now: float) -> None:
        if self._detector is None:
            from whyspike.detect import Detector

            self._detector = Detector(batch_size=self._nominal if self._nominal >= 0 else None, dense=self._dense)
        if self._probe_begun and self._measures.probe_samples:
            self._probe_begun = False
            self._dense = self._detector.dense = self._measures.probe_samples >= probeset.DENSE
            self.facts |= {"dense_probe": self._dense, "probe_samples": self._measures.probe_samples}
        first, probes = stretch.first, self._measures.probes
        n = stretch.n_samples if min(stretch.n_samples) > 0 else [n if n > 0 else None for n in stretch.n_samples]
        for k in self._detector.updates(range(first, first + len(n)), stretch.loss, n, probes):
            self._event(first + k, stretch.loss[k], stretch.steps[k][2], now)
        probes.clear()

    def _event(self, step: int, loss: float, context: Context, now: float) -> None:
        fresh = step - self._last_event > EVENT_APART
        self._last_event = step
        if fresh:
            if counts(self._events):
                self._measures.burst(self._step)
            if counts(self._events, 64):
                self._writer.mark(step, "event", {"loss": "nan" if isnan(loss) else loss})
            self._events += 1
        if self._keeper is not None and self._recent:
            middle = median(self._recent)
            height = inf if isnan(loss) or middle <= 0 else loss / middle
            # What the last update of an epoch did to the network shows in the first losses of the next one.
            # In a short epoch every step is near one, which says nothing.
            (epoch, begun), last = context[:2], self._last_index()
            at_end = (
                epoch >= 0
                and (last is None or last >= SHORT_EPOCH)
                and step - begun in (last, *((0, 1, 2) if epoch > 0 else ()))
            )
            # A new level is seen 16 steps late, a dip when it is over: the snapshot before its begin is wanted.
            events = self._detector.events if fresh else ()
            onset = min(step, events[-1].step) if events else step
            self._keeper.event(onset, height, at_epoch_end=at_end, fresh=fresh, elapsed_s=now - self._begun)

    # ------------------------------------------------------------------ writing

    def _need_folder(self) -> RunFolder:
        if self._folder is None:
            if self._resume is not None and self._wanted_path is not None:
                self._folder = self._writer.folder = RunFolder.reopen(
                    self._wanted_path, self._max_bytes, resume=self._resume
                )
            else:
                self._folder = self._writer.folder = RunFolder.create(self._wanted_path, self._name, self._max_bytes)
                self._folder.write_header(self._header())
        return self._folder

    def _flush(self) -> None:
        if not self._writer.n_rows and self._folder is None:
            return
        folder = self._need_folder()
        if self._keeper is not None:
            self._keeper.make_room(folder, self._writer.size())
        self._writer.flush()

    def _header(self) -> dict[str, object]:
        last = self._last_index() if self._context[0] >= 0 else None
        return {
            **header(self._name, self.model, self.optimizer, self.scheduler, self.scaler),
            "loss_fn": self.loss_fn is not None,
            "probe": self._measures.probe_off is None,
            "store_batches": self._store_batches,
            "accumulate": self._micro_per_step,
            "steps_per_epoch": None if last is None else last + 1,
            **self.facts,
        }

    def _close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed, self._cpu_closed = True, process_time()
        if not self._off and sys.is_finalizing():  # the interpreter is going down: modules may be gone already
            self._off = True
        if not self._off:
            try:
                self._settle()
                learned = {
                    "accumulate": self._micro_per_step,
                    "probe": self._measures.probe_off is None,
                    "loss_fn": self.loss_fn is not None,
                    "dense_probe": self._dense,
                    **self.learned,
                }
                self._writer.mark(self._step, "facts", learned)
                self._drain()
                if self._keeper is not None and self._step:
                    self._keeper.finish(self._need_folder())
                self._writer.mark(self._step, "closed", {"reason": reason})
                self._drain(flush=True)
            except Exception as error:
                self._fail(error)
        self._let_go()

    def _let_go(self) -> None:
        self._off = True
        while self._undo:
            with suppress(Exception):
                self._undo.pop()()
        if self._folder is not None:
            self._folder.close()
        self._keeper = None
        self._steps, self._draws = [], ()
        self._handout.forget()

    def _fail(self, error: Exception, loss: Any = 0.0) -> None:
        """Stop recording, say so once, and keep what was written."""
        try:
            number(loss)
        except BadTraining as unusable:
            error = unusable
        except Exception as odd:
            error = odd
        was_on, folder = not self._off, self.path
        self._off = True
        if was_on and not isinstance(error, OSError):
            with suppress(Exception):  # what is already collected may still be good
                if self._steps:
                    self._writer.steps(self._take_steps())
                self._need_folder()
                self._writer.flush()
        self._let_go()
        where = ""
        if folder is not None and getattr(error, "errno", None) != errno.EDQUOT:  # that one is our own cap
            with suppress(OSError), open(folder / LOG, "a", encoding="utf-8") as log:
                log.write("".join(traceback.format_exception(error)))
                where = f" The traceback is in {folder / LOG}."
        if isinstance(error, BadTraining):
            self._warn(f"{error}. Recording has stopped, the training goes on")
        elif isinstance(error, OSError):
            self._warn(
                f"whyspike could not write to {folder or self._wanted_path or 'whyspike-runs'} ({error}). Recording "
                "has stopped, the training goes on, and what was written before is kept; free some space, or give "
                "watch(path=…) another place"
            )
        else:
            self._warn(
                f"whyspike stopped recording after an error of its own ({type(error).__name__}: {error}); the training "
                f"goes on.{where}"
            )

    def _warn(self, text: str) -> None:
        if text in self._warned:
            return
        self._warned.add(text)
        with suppress(Warning):  # the user may turn warnings into errors; the training must go on all the same
            warnings.warn(text, RuntimeWarning, stacklevel=3)


def _with_closure(args: Any, kwargs: Any, closure: Any) -> tuple[Any, Any]:
    """The arguments of `optimizer.step()` with another closure."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def _after_first(closure: Callable[[], Any], then: Callable[[], Any]) -> Callable[[], Any]:
    """The closure, with `then()` after its first call: L-BFGS calls it more than once."""
    due = [True]

    def called() -> Any:
        result = closure()
        if due.pop() if due else False:
            then()
        return result

    return called


def _size(batch: Any) -> int:
    try:
        return batches.size(batch)
    except Exception:
        return -1


def _integers(ids: Any) -> list[int] | None:
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError):
        return None


def _several_processes() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )
