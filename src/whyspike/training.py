"""`Training`: a training that whyspike can run itself, from scratch, with one thing changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whyspike.errors import BadTraining

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from whyspike.seams import LossFn


@dataclass(kw_only=True)
class Training:
    """Everything that a training needs, in one place.

    Args:
        model: the network. It must have parameters that require a gradient.
        optimizer: any `torch.optim.Optimizer` over the model's parameters.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of the batch, as you log it.
        loader: what yields the batches of an epoch; a `torch.utils.data.DataLoader` also gives sample ids.
        epochs: how often the loader is gone through.
        scheduler: stepped once after every update.
        clip_grad_norm: as `max_norm` of `torch.nn.utils.clip_grad_norm_`, before every update.
        accumulate: batches per update; each loss is divided by it before backward.
        evaluate: called as `evaluate(model)` at the end of every epoch; returns a dict of numbers to log.
        evaluate_every: updates between two evaluations within an epoch, counted anew in each; its end is one, too.

    Raises:
        BadTraining: the model has no parameter to train, or a number is out of its range.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFn
    loader: Iterable[Any]
    epochs: int
    scheduler: Any = None
    clip_grad_norm: float | None = None
    accumulate: int = 1
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        if not any(p.requires_grad for p in self.model.parameters()):
            raise BadTraining(
                f"the model {type(self.model).__name__} has no parameter that requires a gradient; a training needs at "
                "least one: check that the layers are attributes of the module and that requires_grad is True"
            )
        if self.epochs < 1:
            raise BadTraining(f"epochs={self.epochs} was given; it must be at least 1")
        if self.accumulate < 1:
            raise BadTraining(f"accumulate={self.accumulate} was given; it must be at least 1")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise BadTraining(f"evaluate_every={self.evaluate_every} was given; it must be at least 1, or None")


def build(source: Training | Callable[..., Training], seed: int | None = None) -> Training:
    """The training itself, or what the factory builds; `seed` is handed over when the factory accepts it.

    Raises:
        BadTraining: the factory raised, or returned something else than a `Training`.
    """
    if isinstance(source, Training):
        return source
    if not callable(source):
        raise BadTraining(
            f"{source!r} was given; prove and check need a whyspike.Training or a function that returns one"
        )
    name = getattr(source, "__name__", type(source).__name__)
    accepts = seed is not None and "seed" in inspect.signature(source).parameters
    try:
        made = source(seed=seed) if accepts else source()
    except Exception as error:
        raise BadTraining(
            f"{name}() raised {type(error).__name__}: {error}; it must return a whyspike.Training"
        ) from error
    if not isinstance(made, Training):
        raise BadTraining(f"{name}() returned {type(made).__name__}; it must return a whyspike.Training")
    return made
