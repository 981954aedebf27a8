"""Seeing the user's own gradient clipping, without asking for it.

`clip_grad_norm_` looks two helpers up in its module when it is called (torch >= 2.6). The helper that scales the
gradients is wrapped there, so a `from torch.nn.utils import clip_grad_norm_` that was bound long before is seen as
well. On older versions, and for `clip_grad_value_`, the public names are wrapped instead, and an earlier binding is
missed. The wrapper only looks: the original does the work.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import utils
from torch.nn.utils import clip_grad

# (parameters, kind: "norm" or "value", limit, total norm before clipping or None)
Listener = Callable[[Any, str, float, Any], None]

_listeners: list[Listener] = []
_wrapped: list[tuple[Any, str, Any]] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(parameters, kind, limit, norm_before)` on every clipping until the returned function is called."""
    if not _listeners:
        _install()
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)
            if not _listeners:
                _uninstall()

    return stop


def _install() -> None:
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        _wrap([(clip_grad, "_clip_grads_with_norm_"), (utils, "clip_grads_with_norm_")], _before_scaling)
    else:
        _wrap([(clip_grad, "clip_grad_norm_"), (utils, "clip_grad_norm_")], _around_norm)
    _wrap([(clip_grad, "clip_grad_value_"), (utils, "clip_grad_value_")], _before_value)


def _wrap(places: list[tuple[Any, str]], make: Callable[[Any], Any]) -> None:
    original = getattr(*places[0])
    wrapper = functools.wraps(original)(make(original))
    for module, name in places:
        if getattr(module, name, None) is original:
            _wrapped.append((module, name, original))
            setattr(module, name, wrapper)


def _uninstall() -> None:
    while _wrapped:
        module, name, original = _wrapped.pop()
        if getattr(getattr(module, name), "__wrapped__", None) is original:  # somebody else may have wrapped ours
            setattr(module, name, original)


def _tell(parameters: Any, kind: str, limit: Any, norm: Any) -> None:
    for listener in tuple(_listeners):
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
