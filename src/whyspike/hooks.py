"""The seams of any PyTorch training in this process, by global hooks: nothing in its code is edited.

A batch is seen when a DataLoader hands it out, the loss when `backward()` is called on it, the update by the global
hooks of torch.optim, a GradScaler's part and the modes by their methods. The wrappers only pass on what they see: the
originals do the work, with the same arguments. A forked child (a loader's worker, for one) sees nothing of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

Begin = Callable[[Any], Iterator[Any]]


class Seams:
    """What happens in a training. The base class changes nothing and looks at nothing."""

    def hooked(self, hooks: Hooks) -> None:
        """They are in place."""

    def made(self, optimizer: Optimizer) -> None:
        """An optimizer was made."""

    def draws(self, loader: Any, begin: Begin) -> Iterator[Any]:
        """A loader is iterated over; `begin(loader)` makes its own iterator."""
        return begin(loader)

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """`backward` is called on it; what is returned takes its place."""
        return loss

    waits = False  # whether `after_backward` is to be called

    def after_backward(self) -> None:
        """It has ended."""

    def scaled(self, loss: torch.Tensor, scaled: torch.Tensor) -> None:
        """A GradScaler has scaled the loss."""

    def before_update(self, optimizer: Optimizer, *call: Any) -> None:
        """Right before `optimizer.step()`; `call` is what torch tells its hooks, the arguments. See `announce`."""

    def after_update(self, optimizer: Optimizer, *call: Any) -> None:
        """Right after it."""

    def scaler_steps(self, optimizer: Optimizer) -> None:
        """A GradScaler begins its `step(optimizer)`, which may leave the update out."""

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """It has ended."""

    def scaler_updated(self, scaler: Any) -> None:
        """A GradScaler's `update()` has ended."""

    def mode(self, module: nn.Module, training: bool) -> None:
        """`module.train(training)` was called; `eval()` calls `train(False)`."""

    def forked(self) -> None:
        """This process has forked another."""


NOTHING = Seams()


class Hooks:
    """The global hooks, as long as they are installed.

    Args:
        seams: told of everything, until `remove` is called.
    """

    def __init__(self, seams: Seams) -> None:
        self.seams = seams
        self._inside = 0  # a backward, or a loader, calls others of its kind
        self._undo: list[Callable[[], None]] = []
        self._wrap(torch.autograd, "backward", self._backward)  # Tensor.backward calls it
        self._wrap(DataLoader, "__iter__", self._iter)
        self._wrap(nn.Module, "train", self._train)
        self._wrap(Optimizer, "__init__", self._made)
        for kind in {torch.amp.GradScaler, torch.cuda.amp.GradScaler}:
            for name, make in (("scale", self._scale), ("step", self._step), ("update", self._update)):
                if name in vars(kind):
                    self._wrap(kind, name, make)
        self._pre: Any = None
        self._post = register_optimizer_step_post_hook(seams.after_update)
        self.announce(True)
        seams.hooked(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked, after_in_parent=self._forks)

    def remove(self) -> None:
        """Put everything back as it was, where nobody else has wrapped it since."""
        self.announce(False)
        self._post.remove()
        self.seams = NOTHING
        while self._undo:
            self._undo.pop()()

    def announce(self, wanted: bool) -> None:
        """Call `before_update`, or not: a hook costs every step that does not need it. Not to be called inside it."""
        if wanted and self._pre is None:
            self._pre = register_optimizer_step_pre_hook(self.seams.before_update)
        elif not wanted and self._pre is not None:
            self._pre.remove()
            self._pre = None

    def _forks(self) -> None:
        self.seams.forked()

    def _forked(self) -> None:
        self.announce(False)
        self._post.remove()
        self.seams = NOTHING

    def _wrap(self, place: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(place, name)
        wrapper = functools.wraps(original)(make(original))
        setattr(place, name, wrapper)

        def undo() -> None:
            if getattr(place, name) is wrapper:
                setattr(place, name, original)

        self._undo.append(undo)

    # ------------------------------------------------------------------ the wrappers

    def _backward(self, original: Any) -> Any:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(tensors, *args, **kwargs)
            self._inside = 1
            try:
                if isinstance(tensors, torch.Tensor):
                    tensors = self.seams.backward(tensors)
                else:
                    tensors = tuple(self.seams.backward(t) for t in tensors)
                made = original(tensors, *args, **kwargs)
            finally:
                self._inside = 0
            if self.seams.waits:
                self.seams.after_backward()
            return made

        return backward

    def _iter(self, original: Any) -> Any:
        def iterate(loader: Any) -> Iterator[Any]:
            if self._inside:
                return original(loader)

            def begin(loader: Any) -> Iterator[Any]:
                self._inside += 1
                try:
                    return original(loader)
                finally:
                    self._inside -= 1

            return self.seams.draws(loader, begin)

        return iterate

    def _train(self, original: Any) -> Any:
        def train(module: nn.Module, mode: bool = True) -> Any:
            made = original(module, mode)
            self.seams.mode(module, mode)
            return made

        return train

    def _made(self, original: Any) -> Any:
        def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self.seams.made(optimizer)

        return init

    def _scale(self, original: Any) -> Any:
        def scale(scaler: Any, outputs: Any) -> Any:
            made = original(scaler, outputs)
            if isinstance(outputs, torch.Tensor) and made is not outputs:
                self.seams.scaled(outputs, made)
            return made

        return scale

    def _step(self, original: Any) -> Any:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self.seams.scaler_steps(optimizer)
            try:
                return original(scaler, optimizer, *args, **kwargs)
            finally:
                self.seams.scaler_stepped(optimizer)

        return step

    def _update(self, original: Any) -> Any:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(scaler, *args, **kwargs)
            self.seams.scaler_updated(scaler)
            return made

        return update
