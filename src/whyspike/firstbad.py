"""The first step of a training whose values are not all finite: which one, of which samples, and made by what.

The steps before an event are replayed and watched; the first of them whose loss, gradients or weights are not finite
is run again with every operation looked at (`nonfinite.locate`), micro-batch by micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.boundary import Boundary
from whyspike.errors import NotReplayable, WhySpikeError
from whyspike.frozen import frozen
from whyspike.nonfinite import Origin, bad_weights, locate
from whyspike.seams import Intervention, LossFn, StepContext

if TYPE_CHECKING:
    from whyspike.capsule_file import StepRecord
    from whyspike.replay import Subject, Window


SHOWN = 4  # samples that are named
PIECE = 64  # rows of a large batch that are looked at together


@dataclass(frozen=True, kw_only=True)
class Located:
    """The first step of a training that made a value that is not finite, and how."""

    step: int
    origin: Origin
    samples: tuple[int, ...] = ()  # dataset indices of the origin's rows, where the loader gives them
    exact: float | None = None  # the loss of that batch in float64; None where it could not be had

    @property
    def words(self) -> str:
        """`nan at step 7, made by div in module 3 (Head), forward pass; of sample 12`."""
        made = self.origin.words if self.origin.place not in ("forward", "backward") else f"made by {self.origin.words}"
        return f"{self.origin.value} at step {self.step}, {made}{self.of_samples}"

    @property
    def of_samples(self) -> str:
        """`; of sample 12`, empty where they are not known."""
        return f"; of sample {', '.join(map(str, self.samples[:SHOWN]))}" if self.samples else ""


class FirstBad(Intervention):
    """Changes nothing; notes the first step whose loss, gradients or updated weights are not finite."""

    words = "watched for values that are not finite"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.step: int | None = None
        self.in_update = False
        self._model = model

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        self._note(at, [loss.detach()])
        return loss

    def gradients(self, at: StepContext, model: nn.Module) -> None:
        self._note(at, [p.grad for p in model.parameters() if p.grad is not None])

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if self.step is None:
            self._note(at, [p.detach() for p in self._model.parameters()])
            self.in_update = self.step is not None

    def _note(self, at: StepContext, tensors: Sequence[torch.Tensor]) -> None:
        if self.step is None and not all(bool(torch.isfinite(t).all()) for t in tensors):
            self.step = at.step


def find(subject: Subject, window: Window) -> Located | None:
    """Replay a window until the first value that is not finite, and say how it was made. Call it inside `kept()`.

    Returns:
        None where everything stays finite, as in the record.

    Raises:
        NotReplayable: the network cannot run while its operations are watched.
    """
    watch = FirstBad()
    subject.replay(window, watch)
    if watch.step is None:
        lost = next((s.loss for s in subject.capsule(window.path).steps if s.step == window.event_step), 0.0)
        if math.isfinite(lost):
            return None
        value = "nan" if math.isnan(lost) else "inf"
        origin = Origin(place="outside", module="", kind="", operation="", value=value)
        return Located(step=window.event_step, origin=origin)
    record = next(s for s in subject.capsule(window.path).steps if s.step == watch.step)
    model, optimizer = subject.model, subject.optimizer
    if watch.in_update:
        subject.at(window, watch.step + 1)
        origin = bad_weights(model, "update", type(optimizer).__name__)
        return None if origin is None else Located(step=watch.step, origin=origin)
    passed = 0  # samples of the micro-batches before
    for k, batch in enumerate(record.batches or ()):
        _before(subject, window, record, k)
        with frozen(model, train_mode=None), torch.enable_grad():
            optimizer.zero_grad(set_to_none=True)
            try:
                origin = locate(model, subject.loss_fn, batches.clone(batch))
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise NotReplayable(f"step {record.step} cannot be watched: {type(error).__name__}: {error}") from error
            optimizer.zero_grad(set_to_none=True)
        if origin is not None:
            return _of_samples(subject, window, record, k, passed, origin)
        passed += batches.size(batch)
    return None


def _before(subject: Subject, window: Window, record: StepRecord, k: int) -> None:
    """Bring the network to the state before a step, and the generators to what its micro-batch `k` saw."""
    subject.at(window, record.step)
    boundary = record.boundary or Boundary()
    boundary.apply(subject.model, subject.optimizer)
    record.prepare(subject.optimizer)
    boundary.apply_rng()
    for number, batch in enumerate(record.drawn()):
        if number == k:
            return
        with torch.no_grad():  # buffers and generators move on, as they did in the training
            subject.loss_fn(subject.model, batch)


def _of_samples(subject: Subject, window: Window, record: StepRecord, k: int, passed: int, origin: Origin) -> Located:
    """The origin with the samples that it comes from, and what the loss of its batch is in float64."""
    model, optimizer, batch = subject.model, subject.optimizer, (record.batches or ())[k]
    rows = origin.rows
    if not rows and origin.place in ("forward", "backward"):
        _before(subject, window, record, k)
        with frozen(model, train_mode=None):
            rows = sample_of(model, subject.loss_fn, batch)
            optimizer.zero_grad(set_to_none=True)
        origin = replace(origin, rows=rows)
    known = (
        () if record.ids is None else tuple(int(record.ids[passed + r]) for r in rows if passed + r < len(record.ids))
    )
    _before(subject, window, record, k)
    return Located(step=record.step, origin=origin, samples=known, exact=exact_loss(model, subject.loss_fn, batch))


def exact_loss(model: nn.Module, loss_fn: LossFn, batch: Any) -> float | None:
    """The loss of a batch in float64, by a copy of the network; None where it cannot be computed so."""
    try:
        with frozen(model, train_mode=None, seed=0):
            return float(loss_fn(deepcopy(model).double(), batches.to_float64(batch)))
    except Exception:
        return None


def sample_of(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[int, ...]:
    """The rows whose loss alone is not finite, or makes a gradient that is not. None where it is every row.

    A large batch is tried in pieces, which are halved as long as they are not finite, until 64 rows are found. Where
    all rows of a piece are not, it is the network and no row.
    """
    n = batches.size(batch)

    def bad(rows: list[int]) -> bool:
        with frozen(model, train_mode=None), torch.enable_grad():  # no row sees what another left in the buffers
            return locate(model, loss_fn, batches.take(batch, rows, n), n=len(rows)) is not None

    def halved(rows: list[int]) -> list[int]:
        if not bad(rows):
            return []
        half = len(rows) // 2
        return halved(rows[:half]) + halved(rows[half:]) if half else rows

    pieces = [list(range(k, min(n, k + PIECE))) for k in range(0, n, PIECE)]
    found: list[int] = []
    try:
        for piece in pieces:
            here = halved(piece) if len(pieces) > 1 else [row for row in piece if bad([row])]
            if len(here) == len(piece) and len(piece) == PIECE:
                return ()
            found += here
            if len(found) >= PIECE:  # further ones are not told
                break
    except (WhySpikeError, ValueError, RuntimeError):
        return ()
    return tuple(found) if len(found) < n else ()
