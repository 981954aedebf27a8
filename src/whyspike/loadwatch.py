"""Seeing that a state is loaded into a module, or that another optimizer is made, at no cost to a step.

Both are rare, so the two methods are wrapped on their classes while somebody listens. Not by the hooks that a module
offers: those are copied and pickled with the module (`copy.deepcopy(model)`, `torch.save(model)`), and the listener
with them. The wrappers only look: the originals do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer

from whyspike.listeners import Listeners

Listener = Callable[[Any], None]  # called with the module that was loaded, or with the optimizer that was made


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(module_or_optimizer)` after every load and every new optimizer until the result is called."""
    return _listeners.listen(listener)


def _install() -> None:
    for place in ((nn.Module, "load_state_dict"), (Optimizer, "__init__")):
        _listeners.wrap([place], _then_told)


_listeners: Listeners[Listener] = Listeners(_install)


def _then_told(original: Any) -> Any:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        for listener in _listeners:
            with suppress(Exception):  # never into the user's code
                listener(self)
        return made

    return wrapper
