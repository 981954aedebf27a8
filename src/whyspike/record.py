"""Recording a training at the seams of its steps, without changing it.

The recorder looks at the batch when it is drawn, at the gradients before the update, at the weights after it, and at
the loss when the user hands it over. It never raises into the user's loop: an error of its own is warned of once,
written to whyspike.log in the run folder, and ends the recording, not the training. Everything that draws random
numbers, changes a mode or a buffer is put back, so the weights after training are bitwise the same without it.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import traceback
import warnings
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches, clipwatch
from whyspike.errors import BadTraining
from whyspike.frozen import rng_state
from whyspike.keeper import Keeper
from whyspike.liveprobe import LiveProbe
from whyspike.loader_ids import LoaderIds, compact, length, loader_facts
from whyspike.norms import Norms
from whyspike.recordwriter import Context, Draw, RecordWriter, Step
from whyspike.rngnotes import same_rng, torch_rng_state
from whyspike.runfolder import LOG, RunFolder
from whyspike.seams import LossFn
from whyspike.strides import Stride, counts

if TYPE_CHECKING:
    from whyspike.types import Diagnosis

DISABLE = "WHYSPIKE_DISABLE"
FLUSH_S = 1.0  # a killed process loses no more than this
FLUSH_STEPS = 1024
DRAIN_STEPS = (16, 64)  # losses are read, and the detector fed, so many steps at a time; as many as a snapshot's stride
STEADY_STEPS = 64  # steps without a change after which the lr is read when a batch is drawn, not at every update
COMPARE_STEPS = 16  # steps at whose draw the generators are compared, and later now and then
LOOK_AFTER_EVENT = 8  # steps that are measured one by one after the detector has seen something
ALARM = 1.3  # a loss this much above the recent ones is looked at without waiting for DRAIN_STEPS
BUDGET = 0.0015  # share of the training's time for each costly signal: three, and the snapshots
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
    )


class Recorder:
    """Records one training; made by `watch`. All its methods are safe to call at any time, also after `close`."""

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
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.scheduler, self.scaler = scheduler, scaler
        self.loader: Any = None  # the loader of the training, once it is iterated over
        self.facts: dict[str, object] = {}  # what else the header says of the training, if set before the first step
        self._off = os.environ.get(DISABLE, "").lower() not in ("", "0", "false")
        self._closed = False
        self._wanted_path = None if path is None else Path(path)
        self._name = name or type(model).__name__
        self._store_batches, self._max_bytes = store_batches, max_bytes
        self._warned: set[str] = set()
        self._folder: RunFolder | None = None
        self._undo: list[Any] = []
        if not self._off:
            try:
                self._start()
            except Exception as error:
                self._fail(error)

    def _start(self) -> None:
        self._writer = RecordWriter()
        # the step that is being built
        self._step = 0
        self._draws: list[Draw] = []
        self._context: Context = (-1, 0, NAN, None)
        self._clip: tuple[int, float, float] = (-1, NAN, NAN)
        self._steps: list[Step] = []  # not drained yet
        self._attention = 0  # the step at whose end something else than appending is due
        self._look = True  # the next batch needs more than appending
        self._fresh: Any = None  # Keeper.fresh
        self._next_snapshot = 0
        # where the loop stands
        self._passes = 0
        self._steps_per_epoch: int | None = None
        self._batches_per_epoch: int | None = None
        self._update_s = 0.0
        self._micro_per_step = 1
        self._nominal: int | None = None
        self._odd_seen = 0
        self._evaluating = 0
        self._loader_draws = False  # drawing a batch uses the global generators
        self._epoch_draws = False  # beginning an epoch uses others than torch's
        self._epoch_starts = self._evaluated = False
        self._compare_rng = False  # look at the generators around the next draw
        # costly signals
        self._grad_stride = Stride("gradient_norm", 8, BUDGET)
        self._update_stride = Stride("update_norm", 16, BUDGET)
        self._probe_stride = Stride("probe", 8, BUDGET)
        self._strides = [self._grad_stride, self._update_stride, self._probe_stride]
        self._due = 0
        self._want_grad = self._want_update = self._want_probe = self._wanted = False
        self._burst_until = -1
        self._events = 0
        self._last_event = -(1 << 30)
        self._measured: list[tuple[str, int, torch.Tensor]] = []  # measured, not read yet
        self._probes: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=64)
        self._alarm = float("inf")
        self._drain_at = DRAIN_STEPS[0]
        self._begun = monotonic()
        self._flush_at = self._begun + FLUSH_S
        self._pace: tuple[float, int] = (0.0, 0)  # time and step of the last drain
        self._paces: deque[float] = deque(maxlen=15)  # seconds per step, of the latest drains
        self._probe: LiveProbe | None = None
        self._probe_off = self.loss_fn is None
        self._norms: Norms | None = None
        self._lrs: list[Any] = []
        self._lr0: Any = None
        self._pre_hook: Any = None
        self._hook_until = 0
        self._hyper_marks = 0
        self._detector: Any = None
        self._keeper: Keeper | None = None

        if _several_processes():
            self._probe_off = True  # a forward pass that not every rank makes may hang all of them
        if not isinstance(self.model, nn.Module):
            self._warn(
                f"watch() was given {type(self.model).__name__} as the model; it needs the torch.nn.Module that is "
                "trained: watch(model, optimizer). The loss is recorded, nothing else"
            )
            self._probe_off = True
            return
        if not any(p.requires_grad for p in self.model.parameters()):
            self._warn(
                f"the model {type(self.model).__name__} has no parameter that requires a gradient, so only the loss is "
                "recorded; give watch() the module that the optimizer trains"
            )
        if not isinstance(self.optimizer, Optimizer):
            self._warn(
                f"watch() was given {type(self.optimizer).__name__} as the optimizer; it needs the torch.optim.Optimizer "
                "whose step() is called: watch(model, optimizer). Gradients, lr and snapshots are not recorded"
            )
            return
        self._norms = Norms(self.model, self.optimizer)
        self._keeper = Keeper(
            self.model,
            self.optimizer,
            self.scheduler,
            self.scaler,
            max_bytes=self._max_bytes,
            store_batches=self._store_batches,
            mark=self._writer.mark,
        )
        self._strides.append(self._keeper.stride)
        self._read_hyper()
        self._hook(True)
        self._undo.append(lambda: self._hook(False))
        self._undo.append(clipwatch.listen(self._clipped))

    # ------------------------------------------------------------------ what the user calls

    @property
    def path(self) -> Path | None:
        """The run folder; None before the first step is recorded, or when recording is off."""
        return self._folder.path if self._folder is not None else None

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
        return loader if self._off else _Batches(self, loader)

    def step(self, loss: Any) -> None:
        """Record one step. Call it once per optimizer update, after `optimizer.step()`.

        Args:
            loss: the loss as you log it: a scalar tensor, or a number.
        """
        if self._off:
            return
        try:
            if type(loss) is torch.Tensor and loss.is_cpu:
                value = loss.detach().item()
            else:
                value = _number_or_later(loss)
            self._steps.append((value, self._draws, self._context, self._clip))
            self._draws = []
            self._step = step = self._step + 1
            if (
                step >= self._attention
                or monotonic() >= self._flush_at
                or (type(value) is float and not value <= self._alarm)
            ):
                self._attend(step, value)
        except Exception as error:
            self._fail(error, loss)

    def evaluating(self) -> _Evaluating:
        """A context manager around an evaluation: loaders iterated over inside are not the training's."""
        return _Evaluating(self)

    def log(self, **values: Any) -> None:
        """Keep other numbers in the record, as signals at the last recorded step."""
        if self._off:
            return
        try:
            step = max(0, self._step - 1)
            for name, value in values.items():
                try:
                    number = _number(value)
                except BadTraining:
                    self._warn(
                        f"rec.log({name}=…) was given {_describe(value)}; it keeps numbers: rec.log({name}=float(…))"
                    )
                    continue
                self._writer.point(f"log/{name}" if name in _RESERVED else name, step, number)
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

    def flush(self) -> None:
        """Write everything recorded so far to the run folder."""
        if not self._off:
            try:
                self._drain(flush=True)
            except Exception as error:
                self._fail(error)

    # ------------------------------------------------------------------ the batch is drawn

    def _iterate(self, loader: Any) -> Iterator[Any]:
        if self._off or self._evaluating:
            yield from loader
            return
        ids: LoaderIds | None = None
        finished = False
        before: Any = None
        try:
            try:
                if counts(self._passes, 4):
                    before = rng_state()
                ids = LoaderIds(loader)
                self._epoch_begins(loader)
            except Exception as error:
                self._fail(error)
            source = iter(loader)  # what a loader raises is the user's, and goes through
            while True:
                if self._compare_rng and not self._off:
                    before = rng_state()
                try:
                    batch = next(source)
                except StopIteration:
                    finished = True
                    break
                if not self._off and ids is not None:
                    try:
                        seen = ids.seen
                        rows = seen.popleft() if seen else None
                        if (
                            self._look
                            or self._draws
                            or len(rows) != self._nominal
                            or self.optimizer.param_groups[0]["lr"] is not self._lr0
                        ):
                            ids.release()
                            self._drawn(batch, None if rows is None else compact(rows), before)
                            before = None
                        else:
                            self._draws.append((batch, self._fresh, compact(rows), self._nominal, None))
                    except Exception as error:
                        self._fail(error)
                yield batch
        finally:
            if ids is not None:
                ids.close()
            if not self._off:
                try:
                    self._epoch_ends(finished)
                except Exception as error:
                    self._fail(error)

    def _epoch_begins(self, loader: Any) -> None:
        if self.loader is None:
            self.loader = loader
            self.facts |= loader_facts(loader)
            size = self.facts.get("batch_size")
            self._nominal = size if isinstance(size, int) else None
            if self._keeper is not None:
                self._keeper.batch_size = self._nominal
        self._context = (self._passes, self._step, *self._context[2:])
        self._passes += 1
        self._draws = []
        self._look = True
        self._batches_per_epoch = length(loader)
        self._epoch_starts = True
        if self._keeper is not None:
            self._keeper.epoch_begins(self._step, self._last_index())

    def _epoch_ends(self, finished: bool) -> None:
        epoch, steps = self._context[0], self._step - self._context[1]
        if not steps and not (self._draws and finished):
            self._passes -= 1  # a pass without a step: an evaluation that was not announced
        elif finished and not self._draws:
            self._steps_per_epoch = steps
            self._writer.mark(self._step, "epoch", {"epoch": epoch, "steps": steps})
        else:
            self._writer.mark(self._step, "epoch-cut", {"epoch": epoch, "steps": steps, "left_over": len(self._draws)})
        self._compare_rng = False

    def _drawn(self, batch: Any, ids: Any, before: Any) -> None:
        if type(ids) is array or type(ids) is list:
            n = len(ids)
        elif ids is None:
            n = _size(batch)
        else:  # a loader without automatic batching hands out single indices; a sampler may hand out tensors
            ids = [int(i) for i in ids] if hasattr(ids, "__len__") else [ids]
            n = len(ids)
        keeper, draws = self._keeper, self._draws
        if self._norms is not None and self.optimizer.param_groups[0]["lr"] is not self._lr0:
            self._read_hyper()
            self._hook_if_needed(self._step)
        kept = keeper.hold(batch) if keeper is not None and len(draws) < MOST_MICRO else (None, None)
        if draws:
            draws.append((*kept, ids, n, None))
            return
        if n != self._nominal:
            if self._nominal is None:
                self._nominal = n
                if keeper is not None:
                    keeper.batch_size = n
            elif n >= 0:
                self._odd()
        rng = None
        if self._epoch_starts or self._loader_draws or before is not None or self._evaluated:
            rng = self._note_rng(before)
        draws.append((*kept, ids, n, rng))
        if keeper is not None:
            self._fresh = keeper.fresh
            if self._step >= keeper.next_step:
                index, last = self._step - self._context[1], self._last_index()
                if keeper.due(self._step, index, last):
                    keeper.take(self._step, index, last, monotonic() - self._begun)
                    if self._step < 64 or counts(self._step // keeper.stride.every):
                        self._compare_rng = not self._loader_draws
            self._next_snapshot = keeper.next_step
            self._attention = min(self._attention, self._next_snapshot)
        if self._probe is None and not self._probe_off and self.loss_fn is not None:
            self._probe = LiveProbe(self.model, self.loss_fn, batch)
        self._look = self._loader_draws or self._compare_rng or self._fresh is None or type(ids) is not array

    def _note_rng(self, before: Any) -> Any:
        """Keep the generators as they are after the batch was drawn, if drawing it may have used them."""
        now = noted = None
        if before is not None:  # compare: does the loader use the global generators?
            now = rng_state()
            if self._epoch_starts:
                self._epoch_draws = self._epoch_draws or not same_rng(before, now, torch_too=False)
            else:
                self._loader_draws = self._loader_draws or not same_rng(before, now)
                self._compare_rng = self._step < COMPARE_STEPS and not self._loader_draws
        if self._loader_draws or self._evaluated or (self._epoch_starts and self._epoch_draws):
            noted = now or rng_state()
        elif self._epoch_starts:  # a DataLoader draws its seed from torch's generator, and from no other
            noted = torch_rng_state()
        if self._epoch_starts and self._step < COMPARE_STEPS:
            self._compare_rng = not self._loader_draws
        self._epoch_starts = self._evaluated = False
        return noted

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
        elif not wanted and self._pre_hook is not None:
            self._pre_hook.remove()
            self._pre_hook = None

    def _hook_if_needed(self, step: int) -> None:
        # A constant lr is looked at when a batch is drawn. One that changes is read at the update itself.
        if self._norms is not None:
            self._hook(self._wanted or step <= self._hook_until or len(self._lrs) > 1 or self._passes == 0)

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._off:
            return
        try:
            groups = optimizer.param_groups
            if groups[0]["lr"] != self._lr0 or len(groups) != len(self._lrs) or (len(groups) > 1 and self._other_lr()):
                self._read_hyper()
            if self._wanted and self._norms is not None:
                self._measure_before()
        except Exception as error:
            self._fail(error)

    def _other_lr(self) -> bool:
        return any(g["lr"] != lr for g, lr in zip(self.optimizer.param_groups, self._lrs, strict=True))

    def _measure_before(self) -> None:
        norms = self._norms
        assert norms is not None
        start = perf_counter()
        if self._want_grad:
            self._want_grad = False
            if norms.refresh() or not self._grad_stride.total_s:
                self._writer.names("gradient_norm", norms.names)
            found = norms.gradients()
            if found is not None:
                self._measured.append(("gradient_norm", self._step, found[0]))
                self._measured.append(("gradient_norm/", self._step, found[1]))
            now = perf_counter()
            self._grad_stride.spent(now - start)
            start = now
        if self._want_update:
            self._want_update = False
            self._measured.append(("weight_norm", self._step, norms.before_update()))
            self._update_s = perf_counter() - start
            # A hook that is always there would cost every step; this one goes when it has run.
            self._post_hook = self.optimizer.register_step_post_hook(self._after_update)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            self._post_hook.remove()
            if not self._off and self._norms is not None:
                start = perf_counter()
                self._measured.append(("update_norm", self._step, self._norms.after_update()))
                self._update_stride.spent(self._update_s + perf_counter() - start)
        except Exception as error:
            self._fail(error)

    def _clipped(self, parameters: Any, kind: str, limit: Any, norm: Any) -> None:
        if self._off or self._norms is None:
            return
        try:
            one = parameters if isinstance(parameters, torch.Tensor) else next(iter(parameters), None)
            if one is None or not any(one is p for p in self._norms.parameters):
                return  # of another model
            if kind == "norm":
                norm = norm.detach()
                self._clip = (self._step, float(limit), norm.item() if norm.is_cpu else NAN)
                if not norm.is_cpu:
                    self._measured.append(("clip_norm", self._step, norm.clone()))
            elif "clip-value" not in self.facts:
                self.facts["clip-value"] = float(limit)
                self._writer.mark(self._step, "clip-value", {"clip_value": float(limit)})
        except Exception as error:
            self._fail(error)

    def _read_hyper(self) -> None:
        groups = self.optimizer.param_groups
        self._hook_until = self._step + STEADY_STEPS
        self._lrs = [g["lr"].clone() if isinstance(g["lr"], torch.Tensor) else g["lr"] for g in groups]
        self._lr0 = self._lrs[0]
        epoch, first, _, before = self._context
        hyper = tuple({k: _plain(v) for k, v in g.items() if k != "params" and _is_plain(v)} for g in groups)
        self._context = (epoch, first, float(self._lr0), hyper)
        if before is not None and [{**h, "lr": 0} for h in before] == [{**h, "lr": 0} for h in hyper]:
            return
        if counts(self._hyper_marks, 64):
            self._writer.mark(self._step, "hyperparameters", {"groups": list(hyper)})
        self._hyper_marks += 1

    # ------------------------------------------------------------------ after the step

    def _attend(self, step: int, value: Any) -> None:
        """A step has ended after which something is due; `step` is the next one."""
        if self._wanted:
            self._after_step(step - 1)
        if step >= self._due or step <= self._burst_until:
            self._plan(step)
        if (
            step >= self._drain_at
            or monotonic() >= self._flush_at
            or (type(value) is float and not value <= self._alarm)
        ):
            self._drain()
        if step >= self._next_snapshot:
            self._look = True
        self._hook_if_needed(step)
        self._attention = step + 1 if self._wanted else min(self._drain_at, self._due, self._next_snapshot)

    def _after_step(self, step: int) -> None:
        self._want_grad = self._want_update = self._wanted = False  # a scaler may have skipped the update
        if self._want_probe:
            self._want_probe = False
            if self._probe is not None:
                start = perf_counter()
                try:
                    value = self._probe()
                except BadTraining as error:
                    self._probe, self._probe_off = None, True
                    self.facts["probe_error"] = str(error)
                    self._writer.mark(step, "probe-off", {"reason": str(error)})
                    self._warn(f"{error}. The training is recorded without a probe")
                    return
                self._probe_stride.spent(perf_counter() - start)
                self._probes[step] = value
                self._writer.point("probe", step, value)

    def _plan(self, step: int) -> None:
        """Decide what is measured in the step that begins."""
        burst = step <= self._burst_until
        self._want_grad = burst or self._grad_stride.due(step)
        self._want_update = burst or self._update_stride.due(step)
        self._want_probe = burst or self._probe_stride.due(step)
        self._wanted = self._want_grad or self._want_update or self._want_probe
        self._due = min(s.next_after(step) for s in self._strides[:3])
        self._hook_if_needed(step)

    def _odd(self) -> None:
        """A batch of another size than the others: look closely, but not at every one of thousands."""
        if counts(self._odd_seen):
            self._want_grad = self._want_update = self._want_probe = self._wanted = True
            self._attention = 0
            self._hook_if_needed(self._step)
        self._odd_seen += 1

    def _drain(self, *, flush: bool = False) -> None:
        """Read the losses, ask the detector, and write what is due."""
        now = monotonic()
        if self._steps:
            first, steps = self._step - len(self._steps), self._take_steps()
            self._writer.steps(first, steps)
            self._read_measured()
            if self._keeper is not None:
                self._keeper.follow(first, steps)
                self._fresh = self._keeper.fresh
                self._look = self._look or self._fresh is None
            self._detect(first, steps, now)
            recent = self._recent
            recent.extend([s[0] for s in steps])
            highest = max(recent)
            self._alarm = highest * ALARM if highest > 0 else float("inf")
            self._adapt(now)
        if self._keeper is not None and self._keeper.waiting:
            self._keeper.write_ready(self._need_folder())
        if flush or now >= self._flush_at or self._writer.n_rows >= FLUSH_STEPS:
            self._flush()
            self._flush_at = now + FLUSH_S
        every = DRAIN_STEPS[1] if self._keeper is None else self._keeper.stride.every
        self._drain_at = self._step + min(max(every, DRAIN_STEPS[0]), DRAIN_STEPS[1])

    def _take_steps(self) -> list[Step]:
        """The steps that are not drained yet, with their losses read: one wait for a GPU, if any."""
        steps, self._steps = self._steps, []
        late = [s[0] for s in steps if type(s[0]) is not float]
        if late:
            on_gpu = [v for v in late if isinstance(v, torch.Tensor)]
            read = iter(torch.stack(on_gpu).tolist()) if on_gpu else iter(())
            values = [s[0] if type(s[0]) is float else float(next(read) if isinstance(s[0], torch.Tensor) else s[0]) for s in steps]
            steps = [(value, *s[1:]) for value, s in zip(values, steps, strict=True)]
        self._micro_per_step = len(steps[-1][1]) or 1
        return steps

    def _read_measured(self) -> None:
        for name, step, value in self._measured:
            if name.endswith("/"):
                self._writer.table(name[:-1], step, value.tolist())
            else:
                self._writer.point(name, step, value.item())
        self._measured.clear()

    def _detect(self, first: int, steps: list[Step], now: float) -> None:
        if self._detector is None:
            from whyspike.detect import Detector

            self._detector = Detector(batch_size=self._nominal)
        update, probes = self._detector.update, self._probes
        for step, (loss, draws, context, _) in enumerate(steps, first):
            n = draws[0][3] if len(draws) == 1 else sum(d[3] for d in draws)
            if update(step, loss, n_samples=n if n > 0 else None, probe=probes.pop(step, None) if probes else None):
                self._event(step, loss, context, now)

    def _event(self, step: int, loss: float, context: Context, now: float) -> None:
        fresh = step - self._last_event > 30
        self._last_event = step
        if fresh:
            if counts(self._events):
                self._burst_until = self._step + LOOK_AFTER_EVENT
                self._plan(self._step)
            self._events += 1
            if counts(self._events, 64):
                self._writer.mark(step, "event", {"loss": loss if loss == loss else "nan"})
        if self._keeper is not None and self._recent:
            middle = median(self._recent)
            height = loss / middle if middle > 0 and loss == loss else float("inf")
            # What the last update of an epoch did to the network shows in the first losses of the next one.
            epoch, begun = context[:2]
            at_end = epoch >= 0 and step - begun in (self._last_index(), *((0, 1, 2) if epoch > 0 else ()))
            self._keeper.event(step, height, at_epoch_end=at_end, fresh=fresh, elapsed_s=now - self._begun)

    def _adapt(self, now: float) -> None:
        """Double the strides of what costs too much. The step time is a median: evaluations and pauses do not count."""
        since, first = self._pace
        self._pace = (now, self._step)
        if since:
            self._paces.append((now - since) / max(1, self._step - first))
        if len(self._paces) < 3:
            return
        per_step = median(self._paces)
        for stride in self._strides:
            factor = stride.adapt(per_step)
            if factor > 1:
                self._writer.mark(
                    self._step, "stride", {"signal": stride.name, "every": stride.every, "factor": factor}
                )
                self._due = min(s.next_after(self._step - 1) for s in self._strides[:3])

    # ------------------------------------------------------------------ writing

    def _need_folder(self) -> RunFolder:
        if self._folder is None:
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
        model, optimizer = self.model, self.optimizer
        is_module, is_optimizer = isinstance(model, nn.Module), isinstance(optimizer, Optimizer)
        last = self._last_index() if self._context[0] >= 0 else None
        from datetime import datetime

        return {
            "name": self._name,
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model": type(model).__name__,
            "n_parameters": sum(p.numel() for p in model.parameters()) if is_module else None,
            "optimizer": {
                "name": type(optimizer).__name__,
                "defaults": {k: _plain(v) for k, v in optimizer.defaults.items() if _is_plain(v)}
                if is_optimizer
                else {},
            },
            "scheduler": type(self.scheduler).__name__ if self.scheduler is not None else None,
            "scaler": self.scaler is not None,
            "loss_fn": self.loss_fn is not None,
            "probe": not self._probe_off,
            "store_batches": self._store_batches,
            "accumulate": self._micro_per_step,
            "steps_per_epoch": None if last is None else last + 1,
            **self.facts,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "script": sys.argv[0] if sys.argv else "",
        }

    def _close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._off and sys.is_finalizing():  # the interpreter is going down: modules may be gone already
            self._off = True
        if not self._off:
            try:
                self._writer.mark(
                    self._step, "facts", {"accumulate": self._micro_per_step, "probe": not self._probe_off}
                )
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
            try:
                self._undo.pop()()
            except Exception:
                continue
        if self._folder is not None:
            self._folder.close()
        self._keeper = None
        self._steps, self._draws = [], []

    def _fail(self, error: Exception, loss: Any = 0.0) -> None:
        """Stop recording, say so once, and keep what was written."""
        try:
            _number(loss)
        except BadTraining as unusable:
            error = unusable
        except Exception:
            pass
        was_on, folder = not self._off, self.path
        self._off = True
        if was_on and not isinstance(error, OSError):
            try:  # what is already collected may still be good
                if self._steps:
                    first, steps = self._step - len(self._steps), self._take_steps()
                    self._writer.steps(first, steps)
                self._need_folder()
                self._writer.flush()
            except Exception:
                pass
        self._let_go()
        where = ""
        if folder is not None and not (isinstance(error, OSError) and error.errno == errno.EDQUOT):  # that is our own cap
            try:
                with open(folder / LOG, "a", encoding="utf-8") as log:
                    log.write("".join(traceback.format_exception(error)))
                where = f" The traceback is in {folder / LOG}."
            except OSError:
                pass
        if isinstance(error, BadTraining):
            self._warn(f"{error}. Recording has stopped, the training goes on")
        elif isinstance(error, OSError):
            self._warn(
                f"whyspike could not write to {folder or self._wanted_path or 'whyspike-runs'} ({error}). Recording has "
                "stopped, the training goes on, and what was written before is kept; free some space, or give "
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
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        except Warning:  # the user turns warnings into errors; the training must go on all the same
            pass


class _Batches:
    """What `rec.batches(loader)` returns: the loader, with its length and its attributes."""

    def __init__(self, recorder: Recorder, loader: Any) -> None:
        self._recorder, self._loader = recorder, loader

    def __iter__(self) -> Iterator[Any]:
        return self._recorder._iterate(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Evaluating:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        if not self._recorder._off:
            self._recorder._evaluating += 1
            self._since = monotonic()

    def __exit__(self, *exc: object) -> None:
        recorder = self._recorder
        if recorder._off or not recorder._evaluating:
            return
        recorder._evaluating -= 1
        recorder._evaluated = recorder._look = True  # an evaluation may draw random numbers
        recorder._writer.mark(recorder._step, "evaluation", {"seconds": round(monotonic() - self._since, 6)})


_RESERVED = frozenset({"probe", "gradient_norm", "update_norm", "weight_norm", "clip_norm", "clip_max_norm", "loss"})


def _number_or_later(loss: Any) -> Any:
    """A number; on a GPU a copy, because reading it would wait for it and a captured graph overwrites its loss."""
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and not loss.is_complex() and not loss.is_cpu:
        return loss.detach().clone().reshape(())
    return _number(loss)


def _number(value: Any) -> float:
    if isinstance(value, torch.Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value.detach())
    else:
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise BadTraining(
        f"rec.step(loss) was given {_describe(value)}; it needs one number per optimizer update, the loss as you log it: "
        + ("rec.step(loss.mean())" if isinstance(value, torch.Tensor) else "rec.step(loss)")
    )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {'complex ' if value.is_complex() else ''}tensor of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"


def _size(batch: Any) -> int:
    try:
        return batches.size(batch)
    except Exception:
        return -1


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    if isinstance(value, tuple | list):
        return all(
            isinstance(v, int | float | bool | type(None)) or (isinstance(v, torch.Tensor) and v.numel() == 1)
            for v in value
        )
    return isinstance(value, int | float | bool | str | type(None))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    return value


def _several_processes() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )
