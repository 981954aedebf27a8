"""What batch statistics do: the same samples normalised by their own mean and variance, and by the running ones.

In train mode a BatchNorm layer divides by the standard deviation of the batch it is given. Of two samples every channel
comes out as +1 and -1 whatever they are; of one there is none. In eval mode it divides by the running statistics, which
may lag behind the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whyspike import batches
from whyspike.errors import WhySpikeError
from whyspike.frozen import frozen, loss_value
from whyspike.seams import LossFn

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
SAMPLES = 64  # that are split into batches of each size
LEAST_POSITIONS = 8  # values that a channel's statistics are made of, below which they are few whatever the spread


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """The loss of one batch, its channels normalised in two ways, at the weights it was trained on."""

    n: int
    own: float  # by its own statistics, as in training
    running: float  # by the running ones

    @property
    def ratio(self) -> float:
        return self.own / self.running if self.running > 0 else float("inf")


def layers(model: nn.Module) -> list[Any]:
    """The BatchNorm layers that have running statistics."""
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_var is not None]


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers normalise by their running statistics; everything else stays in its mode."""
    changed = [m for m in layers(model) if m.training]
    try:
        for module in changed:
            module.training = False
        yield
    finally:
        for module in changed:
            module.training = True


def compare(model: nn.Module, loss_fn: LossFn, batch: Any) -> Normalised:
    """One batch in both ways; dropout and generators alike. Nothing changes.

    Raises:
        BadTraining: `loss_fn` raised.
    """
    with frozen(model, train_mode=True, seed=0):
        own = loss_value(model, loss_fn, batch)
    with frozen(model, train_mode=True, seed=0), running_statistics(model):
        running = loss_value(model, loss_fn, batch)
    return Normalised(n=batches.size(batch), own=own, running=running)


def by_size(model: nn.Module, loss_fn: LossFn, batch: Any, sizes: Sequence[int]) -> dict[int, float | None]:
    """The mean loss of the same samples in batches of each size, in train mode; None where a size raises.

    torch's BatchNorm raises for a single value per channel. Samples that fill no batch of a size are left out of it.
    """
    total = batches.size(batch)
    found: dict[int, float | None] = {}
    for n in sizes:
        groups = [list(range(k, k + n)) for k in range(0, total - n + 1, n)]
        try:
            with frozen(model, train_mode=True, seed=0):
                losses = [loss_value(model, loss_fn, batches.take(batch, rows, total)) for rows in groups]
            found[n] = sum(losses) / len(losses) if losses else None
        except WhySpikeError:
            found[n] = None
    return found


@contextmanager
def relearned(model: nn.Module, forward: Callable[[Any], Any], drawn: Sequence[Any]) -> Iterator[None]:
    """Inside, the running statistics are the plain mean over some batches, as `torch.optim.swa_utils.update_bn` does.

    Call it inside `frozen`, which puts the buffers back.
    """
    norms = layers(model)
    momenta = [m.momentum for m in norms]
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()  # dropout off: the statistics are those of an evaluation
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
            module.training = True
        with torch.no_grad():
            for batch in drawn:
                forward(batch)
        model.eval()
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        for module, flag in modes:
            module.training = flag


@dataclass(frozen=True, kw_only=True)
class EvalGap:
    """The mean loss of the same training batches in three ways, with dropout off, at the weights before one step."""

    step: int
    own: float  # each batch by its own statistics, as in training
    running: float  # by the running statistics, as in an evaluation
    relearned: float  # by statistics learned anew at these weights, over other batches
    dropout: float | None = None  # as in training, dropout on; None where the network has none

    @property
    def ratio(self) -> float:
        return self.running / self.own if self.own > 0 else float("inf")

    @property
    def removed(self) -> float:
        """The share of the gap between evaluation and training that relearned statistics close."""
        gap = self.running - self.own
        return (self.running - self.relearned) / gap if gap > 0 else float("nan")


def eval_gap(model: nn.Module, loss_fn: LossFn, drawn: Sequence[Any], others: Sequence[Any], step: int) -> EvalGap:
    """Evaluate batches in train and in eval mode. Nothing changes.

    Args:
        drawn: batches that are evaluated.
        others: batches from which the statistics are learned anew.

    Raises:
        BadTraining: `loss_fn` raised.
    """

    def mean() -> float:
        return sum(loss_value(model, loss_fn, b) for b in drawn) / len(drawn)

    drops = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    with frozen(model):
        running = mean()
    own = dropout = None
    if drops:
        with frozen(model, train_mode=True, seed=0):
            dropout = mean()
    with frozen(model, train_mode=True, seed=0):
        for module in drops:
            module.training = False
        own = mean()
    with frozen(model, seed=0), relearned(model, lambda b: loss_fn(model, b), others):
        again = mean()
    return EvalGap(step=step, own=own, running=running, relearned=again, dropout=dropout)
