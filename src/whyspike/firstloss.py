"""The loss before any training, beside that of a network that says nothing.

A network that treats all classes alike has a cross-entropy of ln C, whatever the weights of the samples and whatever
is masked. That number is had from the user's own loss function, by putting equal logits in place of the network's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from whyspike.frozen import frozen, loss_value
from whyspike.seams import LossFn

# Above ln C lie the first batches of the cases by -.03 to +.09 nats, of a contrastive loss by .89 (of ln 32).
LEAST_NATS = 1.0
LEAST_SHARE = 0.5  # of ln C
LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")


@dataclass(frozen=True, kw_only=True)
class FirstLoss:
    """The loss of some training batches at the weights of the beginning."""

    loss: float
    nothing: float  # of equal logits: ln C for a plain cross-entropy
    spread: float  # standard deviation of the network's logits about the mean of their sample
    classes: int

    @property
    def excess(self) -> float:
        """Nats above a network that says nothing. A loss that is divided or weighted is brought back to nats first."""
        return (self.loss - self.nothing) * (log(self.classes) / self.nothing if self.nothing > 0 else 0.0)

    @property
    def out_of_scale(self) -> bool:
        """Whether it is certain of what it cannot know yet."""
        return self.excess >= max(LEAST_NATS, LEAST_SHARE * log(self.classes))


class _Logits(TorchFunctionMode):
    """Multiplies the logits that a loss takes, and notes what they were."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor
        self.calls = 0
        self.classes = 2
        self.spread = 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        logits = args[0] if args else given.get("input")
        if name not in LOGITS or not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
            return func(*args, **given)
        if self.calls == 0:
            several = name == "cross_entropy" and logits.ndim > 0
            dim = 1 if logits.ndim > 1 else 0
            self.classes = int(logits.shape[dim]) if several else 2
            values = logits.detach().float()
            self.spread = float((values - values.mean(dim, keepdim=True)).std() if several else values.std())
        self.calls += 1
        if self._factor != 1:
            logits = logits * self._factor
        with torch._C.DisableTorchFunction():  # its own insides (log_softmax, nll_loss) are no further calls
            if args:
                return func(logits, *args[1:], **given)
            return func(**{**given, "input": logits})


def first_loss(model: nn.Module, loss_fn: LossFn, drawn: Sequence[Any], *, train_mode: bool = True) -> FirstLoss | None:
    """Compare. Nothing changes.

    Returns:
        None where the loss is no cross-entropy on logits, or several of them.

    Raises:
        BadTraining: `loss_fn` raised.
    """

    def mean(factor: float) -> tuple[float, _Logits]:
        with frozen(model, train_mode=train_mode, seed=0), _Logits(factor) as watch:
            return sum(loss_value(model, loss_fn, b) for b in drawn) / len(drawn), watch

    loss, watch = mean(1.0)
    if watch.calls != len(drawn) or watch.classes < 2:
        return None
    nothing, _ = mean(0.0)
    return FirstLoss(loss=loss, nothing=nothing, spread=watch.spread, classes=watch.classes)
