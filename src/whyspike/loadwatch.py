"""Seeing that a state is loaded into a module, or that another optimizer is made, at no cost to a step.

Both are rare, so the two methods are wrapped on their classes while somebody listens. Not by the hooks that a module
offers: those are copied and pickled with the module (`copy.deepcopy(model)`, `torch.save(model)`), and the listener
with them. The wrappers only look: the originals do the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer

Listener = Callable[[Any], None]  # called with the module that was loaded, or with the optimizer that was made

_listeners: list[Listener] = []
_wrapped: list[tuple[type, str, Any]] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(module_or_optimizer)` after every load and every new optimizer until the result is called."""
    if not _listeners:
        for kind, name in ((nn.Module, "load_state_dict"), (Optimizer, "__init__")):
            _wrap(kind, name)
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)
            if not _listeners:
                _uninstall()

    return stop


def _wrap(kind: type, name: str) -> None:
    original = getattr(kind, name)

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        for listener in tuple(_listeners):
            with suppress(Exception):  # never into the user's code
                listener(self)
        return made

    _wrapped.append((kind, name, original))
    setattr(kind, name, wrapper)


def _uninstall() -> None:
    while _wrapped:
        kind, name, original = _wrapped.pop()
        if getattr(getattr(kind, name), "__wrapped__", None) is original:  # somebody else may have wrapped ours
            setattr(kind, name, original)
