"""The costly signals of a training: gradient, update and weight norms, and the probe.

They are measured at strides fixed by the step's number, which are doubled while a signal takes more than its budget;
and besides at the first steps whose batch has another size than the others, and for a few steps after the detector
has seen something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.errors import BadTraining, NotReplayable
from whyspike.liveprobe import LiveProbe
from whyspike.norms import Norms
from whyspike.probeset import LEAST
from whyspike.recordwriter import RecordWriter
from whyspike.seams import LossFn
from whyspike.strides import Stride, counts

SMALL = 100_000  # parameters below which a forward pass takes less time than Python's own part of a step
BUDGET = 0.0015  # share of the training's time for each of the three
LOOK_AFTER_EVENT = 8  # steps that are measured one by one after the detector has seen something
MOST_PIECES, MOST_CLOSELY = 8, 12  # forward passes of one probe, at most
TABLE_TENSORS = 256  # with more tensors their single norms are measured less often: 0.5 MB per 1,000 steps


def probe_every(model: nn.Module) -> int:
    """The stride of a probe that is measured closely: every step of a small network, whose spikes may be short."""
    return 1 if sum(p.numel() for p in model.parameters()) < SMALL else 4


MakeProbe = Callable[[Sequence[Any]], Callable[[], float]]  # of the batches that it is measured on


class Measures:
    """Decides at which steps what is measured, and measures it.

    Args:
        loss_fn: None for no probe.
        closely: measure at the first strides throughout, whatever it costs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        loss_fn: LossFn | None,
        writer: RecordWriter,
        *,
        closely: bool = False,
    ) -> None:
        self.norms = Norms(model, optimizer) if optimizer is not None else None
        self.wanted = False  # anything in this step
        self.due = 0  # the next step at which something is, by its stride
        self.probes: dict[int, float] = {}  # by step, for the detector
        self.probe_off: str | None = None if loss_fn is not None else "no loss_fn was given"
        self._model, self._optimizer, self._writer = model, optimizer, writer
        self._make: MakeProbe | None = None if loss_fn is None else lambda pieces: LiveProbe(model, loss_fn, pieces)
        self._probe: Callable[[], float] | None = None
        self._step = 0
        budget = math.inf if closely else BUDGET
        tensors = len(self.norms.parameters) if self.norms is not None else 0
        self._grad_stride = Stride("gradient_norm", 8 * max(1, tensors // TABLE_TENSORS), budget)
        self._update_stride = Stride("update_norm", 16, budget)
        self._probe_stride = Stride("probe", probe_every(model) if closely else 8, budget)
        self.strides = [self._grad_stride, self._update_stride, self._probe_stride]
        self._grad = self._update = self._probing = False
        self._burst_until = -1
        self._odd_seen = 0
        self._named = False
        self._gathered: list[Any] = []  # batches for the probe set
        self._samples, self._least = 0, LEAST  # in them, and that are wanted
        self.probe_samples = 0  # of the probe, once there is one
        self._pending: list[tuple[str, int, torch.Tensor]] = []  # measured, not read yet
        self._update_s = 0.0
        self._post_hook: Any = None
        self._armed = False  # the weights before the update are there, those after it are not

    def adopt(self, optimizer: Optimizer) -> None:
        """The training goes on with another optimizer."""
        self.let_go()
        self._optimizer, self.norms = optimizer, Norms(self._model, optimizer)

    # ------------------------------------------------------------------ when

    def plan(self, step: int) -> None:
        """Decide what is measured in the step that begins."""
        burst = step <= self._burst_until
        self._step = step
        self._grad = burst or self._grad_stride.due(step)
        self._update = burst or self._update_stride.due(step)
        self._probing = burst or self._probe_stride.due(step)
        self.wanted = self._grad or self._update or self._probing
        self.due = step + 1 if burst else min(s.next_after(step) for s in self.strides)

    def odd_batch(self, step: int) -> bool:
        """A batch of another size: look closely, but not at every one of thousands. Returns whether."""
        looks = counts(self._odd_seen)
        self._odd_seen += 1
        if looks:
            self._step = step
            self._grad = self._update = self._probing = self.wanted = True
        return looks

    def burst(self, step: int) -> None:
        """Measure this step and the next ones."""
        self._burst_until = step + LOOK_AFTER_EVENT
        self.plan(step)

    def adapt(self, step: int, others: list[Stride], seconds_per_step: list[float]) -> None:
        """Double the strides of what costs too much. The step time is a median: pauses and evaluations do not count."""
        if len(seconds_per_step) < 3:
            return
        per_step = median(seconds_per_step)
        for stride in (*self.strides, *others):
            factor = stride.adapt(per_step)
            if factor > 1:
                self._writer.mark(step, "stride", {"signal": stride.name, "every": stride.every, "factor": factor})
                self.due = min(s.next_after(step - 1) for s in self.strides)

    # ------------------------------------------------------------------ what

    def before_update(self, step: int) -> None:
        """Gradient norms, and the weights before the update."""
        norms, start = self.norms, perf_counter()
        if norms is None or self._optimizer is None:
            return
        if self._grad:
            self._grad = False
            if norms.refresh() or not self._named:
                self._named = True
                self.read()
                self._writer.names("gradient_norm", norms.names)
            found = norms.gradients()
            if found is not None:
                self._pending.append(("gradient_norm", step, found[0]))
                self._pending.append(("gradient_norm/", step, found[1]))
            now = perf_counter()
            self._grad_stride.spent(now - start)
            start = now
        if self._update:
            self._update = False
            self._pending.append(("weight_norm", step, norms.before_update()))
            self._update_s = perf_counter() - start
            # A hook that is always there would cost every step. It goes after the step: a hook that removes itself
            # while hooks run breaks the loop over them if another one follows.
            self._armed = True
            if self._post_hook is None:
                self._post_hook = self._optimizer.register_step_post_hook(self._after_update)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._armed:
            return
        self._armed, start = False, perf_counter()
        if self.norms is not None:
            try:
                self._pending.append(("update_norm", self._step, self.norms.after_update()))
            except Exception:  # never into the user's optimizer.step(); the weight norm alone is kept
                self.norms = None
            self._update_stride.spent(self._update_s + perf_counter() - start)

    def let_go(self) -> None:
        """Remove the hook, if it is there. Not to be called while hooks run."""
        self._armed = False
        if self._post_hook is not None:
            self._post_hook.remove()
            self._post_hook = None

    def later(self, name: str, step: int, value: torch.Tensor) -> None:
        """A value on a GPU that is read with the others."""
        self._pending.append((name, step, value.clone()))

    @property
    def gathering(self) -> bool:
        """Whether the probe set still lacks samples."""
        return self._probe is None and self.probe_off is None

    def begin_probe(self, make: MakeProbe, least: int = LEAST) -> None:
        """A probe where there was no loss function for one.

        Args:
            make: makes it of some batches, or raises `NotReplayable`.
            least: samples in them, of the batches that are drawn from here on.
        """
        if self._probe is None and self._make is None:
            self._make, self.probe_off, self._least = make, None, least

    def probe_set(self, pieces: Sequence[Any]) -> None:
        """Choose the probe set, unless there is one."""
        if self.gathering and self._make is not None:
            try:
                self._probe = self._make(pieces)
                self.probe_samples = sum(max(0, batches.size(piece)) for piece in pieces)
            except NotReplayable as error:
                self._no_probe(self._step, str(error))

    def _no_probe(self, step: int, reason: str) -> None:
        self._probe, self.probe_off = None, reason
        self._writer.mark(step, "probe-off", {"reason": reason})

    def gather(self, batch: Any, n: int) -> None:
        """Where no probe set was chosen it is the first batches of the training, until they have enough samples.

        The loss on a few samples goes its own way: after a while it says where they are, not where the network is.

        Args:
            n: samples of the batch; negative when not known.
        """
        if not self.gathering:
            return
        self._gathered.append(batches.clone(batch))
        self._samples += n if n > 0 else LEAST
        most = MOST_PIECES if self._least <= LEAST else MOST_CLOSELY
        if self._samples >= self._least or len(self._gathered) >= most:
            self.probe_set(self._gathered)
            self._gathered = []

    def after_step(self, step: int) -> str | None:
        """Measure the probe, if it is its turn. Returns why there is none from now on, if the user's loss_fn failed."""
        self.let_go()
        probing = self._probing
        self._grad = self._update = self._probing = self.wanted = False  # a scaler may have skipped the update
        if not probing or self._probe is None:
            return None
        start = perf_counter()
        try:
            value = self._probe()
        except BadTraining as error:
            self._no_probe(step, str(error))
            return str(error)
        self._probe_stride.spent(perf_counter() - start)
        self.probes[step] = value
        self._writer.point("probe", step, value)
        return None

    def read(self) -> None:
        """Hand what was measured to the writer. This is where a GPU is waited for."""
        for name, step, value in self._pending:
            if name.endswith("/"):
                self._writer.table(name[:-1], step, value.tolist())
            else:
                self._writer.point(name, step, value.item())
        self._pending.clear()
