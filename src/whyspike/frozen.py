"""Looking at a network without leaving a trace: modes, buffers and every random number generator are put back.

A replay is bitwise only when nothing else has drawn a random number, so whatever evaluates the user's loss does it
inside `frozen`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import nn

from whyspike.errors import BadTraining
from whyspike.seams import LossFn


def rng_state() -> dict[str, Any]:
    """The state of every global generator: torch (CPU, and each GPU that is in use), Python, and numpy if imported."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    if "numpy" in sys.modules:
        from whyspike import numpy_rng

        state["numpy"] = numpy_rng.state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. A generator that was not in use then is left as it is."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    if "numpy" in state:
        from whyspike import numpy_rng

        numpy_rng.restore(state["numpy"])


def seed_rng(seed: int) -> None:
    """Seed every generator that `rng_state` saves.

    Not `torch.manual_seed`: that also queues a seed for a GPU which is not yet in use, and nothing could undo it.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed)  # noqa: NPY002


@contextmanager
def frozen(model: nn.Module, *, train_mode: bool | None = False, seed: int | None = None) -> Iterator[nn.Module]:
    """Evaluate a model without changing it or anything around it.

    Inside, the model is in eval mode (unless `train_mode` says otherwise) and no gradient is recorded. Afterwards, also
    after an exception, every module's own training flag, every buffer (values bitwise, and the same tensor objects)
    and every global generator are as they were. Parameters are not copied: a loss function must not change them.

    Args:
        model: the network.
        train_mode: True switches dropout and batch statistics on; None leaves every module in the mode it is in.
        seed: seed the generators inside, so that the same call gives the same number.
    """
    modules = [(module, module.training, _own_buffers(module)) for module in model.modules()]
    # One copy per tensor object: tied buffers stay tied.
    copies = {id(b): b.detach().clone() for _, _, own in modules for b in own.values() if b is not None}
    generators = rng_state()
    try:
        if train_mode is not None:
            model.train(train_mode)
        if seed is not None:
            seed_rng(seed)
        with torch.no_grad():
            yield model
    finally:
        with torch.no_grad():
            for module, flag, own in modules:
                module.training = flag  # not module.train(): a user's own override may do more
                if isinstance(module._buffers, dict) and (
                    list(module._buffers) != list(own) or any(module._buffers[k] is not own[k] for k in own)
                ):
                    module._buffers.clear()
                    module._buffers.update(own)
                for buffer in own.values():
                    if buffer is not None and not _same_bits(buffer, copies[id(buffer)]):
                        buffer.copy_(copies[id(buffer)])
        restore_rng(generators)


def _own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    # A scripted module keeps its buffers elsewhere, and none can be added or replaced.
    return dict(module._buffers) if isinstance(module._buffers, dict) else dict(module.named_buffers(recurse=False))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    # An untouched buffer must not be written: autograd would see a new version of a tensor that it has saved.
    return a.shape == b.shape and torch.equal(a, b)


def loss_value(model: nn.Module, loss_fn: LossFn, batch: Any) -> float:
    """The user's loss of one batch as a number. To be called inside `frozen`.

    Raises:
        BadTraining: `loss_fn` raised, or did not return a scalar; the message says what to return.
    """
    return float(call_loss(model, loss_fn, batch).detach())


def call_loss(model: nn.Module, loss_fn: LossFn, batch: Any) -> torch.Tensor:
    """The user's loss of one batch: a tensor of one element, with its graph when gradients are recorded.

    Raises:
        BadTraining: as `loss_value`.
    """
    try:
        loss = loss_fn(model, batch)
    except RuntimeError as error:
        # A gradient penalty needs gradients inside the loss.
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise _raised(loss_fn, error) from error
        with torch.enable_grad():
            try:
                loss = loss_fn(model, batch)
            except Exception as second:
                raise _raised(loss_fn, second) from second
    except Exception as error:
        raise _raised(loss_fn, error) from error
    if not isinstance(loss, torch.Tensor):
        raise BadTraining(
            f"{_name(loss_fn)} returned {type(loss).__name__}; it must return the scalar loss of the batch: "
            f"{_instead(loss)}"
        )
    if loss.numel() != 1 or loss.is_complex():
        raise BadTraining(
            f"{_name(loss_fn)} returned a tensor of shape {tuple(loss.shape)}; it must return one real number, the "
            "scalar loss as you log it: return loss.mean(), or whatever reduction your training loop applies"
        )
    return loss


def _instead(value: Any) -> str:
    if isinstance(value, Real):
        return "return the tensor itself, before .item() or float()"
    if isinstance(value, dict) and "loss" in value:
        return 'return output["loss"]'
    if hasattr(value, "loss"):
        return "return output.loss"
    if isinstance(value, tuple | list) and value and isinstance(value[0], torch.Tensor) and value[0].numel() == 1:
        return "return its first element alone"
    return "return the scalar tensor that you call backward() on"


def _name(loss_fn: LossFn) -> str:
    return f"{getattr(loss_fn, '__name__', type(loss_fn).__name__)}(model, batch)"


def _raised(loss_fn: LossFn, error: Exception) -> BadTraining:
    text = str(error).strip().splitlines()
    return BadTraining(
        f"{_name(loss_fn)} raised {type(error).__name__}: {text[0] if text else 'no message'}; whyspike calls it with "
        "the model and one batch of the loader, and it must return the scalar loss of that batch"
    )
