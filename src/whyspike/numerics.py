"""What is seen of the numbers themselves: what the loss does with probabilities, and where values stop being finite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from whyspike.firstbad import Located
    from whyspike.lossform import Form
    from whyspike.seams import LossFn

SAMPLES = 64  # whose own loss is held against the values that a clip leaves


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Of a loss function on one network. `located` is by event id."""

    forms: tuple[Form, ...] = ()
    classes: int | None = None  # of the softmax
    certain: float | None = None  # the loss of a network that is certain of itself and wrong; None where not tried
    stuck: tuple[str, float] | None = None  # what the loss of single samples is clipped at, and the share of them
    located: Mapping[str, Located] = field(default_factory=dict)


def look(model: nn.Module, loss_fn: LossFn, batch: Any) -> Numerics:
    """Look at a loss function on some training samples. Nothing of the training changes.

    Raises:
        BadTraining: `loss_fn` raised or did not return a scalar.
    """
    from whyspike import batches
    from whyspike.attribute import per_sample
    from whyspike.frozen import frozen, loss_value
    from whyspike.lossform import LossForms, clip_of

    with frozen(model, seed=0), LossForms() as seen:
        loss_value(model, loss_fn, batch)
    if not seen.forms:
        return Numerics()
    with frozen(model, seed=0), LossForms(certain=True):
        certain = loss_value(model, loss_fn, batch)
    n = min(SAMPLES, batches.size(batch))
    losses = per_sample(model, loss_fn, batches.take(batch, list(range(n)), batches.size(batch)), 1)
    counted = Counter(words for v in losses.tolist() if math.isfinite(v) and (words := clip_of(v)) is not None)
    stuck = None
    if counted:
        words, count = counted.most_common(1)[0]
        stuck = (words, count / n)
    return Numerics(forms=tuple(seen.forms), classes=seen.classes, certain=certain, stuck=stuck)
