"""Seeing the user's own gradient clipping, without asking for it.

`clip_grad_norm_` looks two helpers up in its module when it is called (torch >= 2.6). The helper that scales the
gradients is wrapped there, so a `from torch.nn.utils import clip_grad_norm_` that was bound long before is seen as
well. On older versions, and for `clip_grad_value_`, the public names are wrapped instead, and an earlier binding is
missed. The wrapper only looks: the original does the work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import utils
from torch.nn.utils import clip_grad

from whyspike.listeners import Listeners

# (parameters, kind: "norm" or "value", limit, total norm before clipping or None)
Listener = Callable[[Any, str, float, Any], None]


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(parameters, kind, limit, norm_before)` on every clipping until the returned function is called."""
    return _listeners.listen(listener)


def _install() -> None:
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        _listeners.wrap([(clip_grad, "_clip_grads_with_norm_"), (utils, "clip_grads_with_norm_")], _before_scaling)
    else:
        _listeners.wrap([(clip_grad, "clip_grad_norm_"), (utils, "clip_grad_norm_")], _around_norm)
    _listeners.wrap([(clip_grad, "clip_grad_value_"), (utils, "clip_grad_value_")], _before_value)


_listeners: Listeners[Listener] = Listeners(_install)


def _tell(parameters: Any, kind: str, limit: Any, norm: Any) -> None:
    for listener in _listeners:
        listener(parameters, kind, limit, norm)


def _before_scaling(original: Any) -> Any:
    def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
        if inspect.isgenerator(parameters):
            parameters = list(parameters)
        _tell(parameters, "norm", max_norm, total_norm)
        return original(parameters, max_norm, total_norm, *args, **kwargs)

    return clip


def _around_norm(original: Any) -> Any:
    def clip(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(parameters, torch.Tensor):
            parameters = list(parameters)
        norm = original(parameters, max_norm, *args, **kwargs)
        _tell(parameters, "norm", max_norm, norm)
        return norm

    return clip


def _before_value(original: Any) -> Any:
    def clip(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(parameters, torch.Tensor):
            parameters = list(parameters)
        _tell(parameters, "value", clip_value, None)
        return original(parameters, clip_value, *args, **kwargs)

    return clip
