"""A loss as the user hands it over, as a number; and what to say when it is none."""

from __future__ import annotations

from typing import Any

import torch

from whyspike.errors import BadTraining


def number(value: Any) -> float:
    """The number in a scalar tensor, a numpy scalar or a Python number.

    Raises:
        BadTraining: it is something else; the message says what was given and what to write.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value.detach())
    else:
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    write = "rec.step(loss.mean())" if isinstance(value, torch.Tensor) else "rec.step(loss)"
    raise BadTraining(
        f"rec.step(loss) was given {describe(value)}; it needs one number per optimizer update, the loss as you log "
        f"it: {write}"
    )


def number_or_later(loss: Any) -> Any:
    """A number; of a loss on a GPU a copy, because reading it would wait, and a captured graph overwrites its loss."""
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and not loss.is_complex() and not loss.is_cpu:
        return loss.detach().clone().reshape(())
    return number(loss)


def read_all(values: list[Any]) -> list[float]:
    """The numbers in what `number_or_later` gave, with one wait for a GPU."""
    late = [v for v in values if isinstance(v, torch.Tensor)]
    read = iter(torch.stack(late).tolist()) if late else iter(())
    return [float(next(read)) if isinstance(v, torch.Tensor) else float(v) for v in values]


def describe(value: Any) -> str:
    """What was given, in words."""
    if isinstance(value, torch.Tensor):
        return f"a {'complex ' if value.is_complex() else ''}tensor of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"
