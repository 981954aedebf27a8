"""Seeing that a DataLoader begins an epoch, where the loop is not ours: its sample ids are noted on their way.

`DataLoader.__iter__` is wrapped on its class while somebody listens. The wrapper only looks: the original makes the
iterator, and the loader has its own sampler back before the first batch is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from whyspike.loader_ids import LoaderIds

Listener = Callable[[Any], LoaderIds | None]  # called with the loader before its iterator is made

_listeners: list[Listener] = []
_wrapped: list[Any] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(loader)` before a DataLoader makes an iterator, until the returned function is called.

    What it returns, if anything, is released once the iterator is there.
    """
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
    original = DataLoader.__iter__

    @functools.wraps(original)
    def wrapper(self: Any) -> Iterator[Any]:
        noting: list[LoaderIds] = []
        for listener in tuple(_listeners):
            with suppress(Exception):  # never into the user's code
                made = listener(self)
                if made is not None:
                    noting.append(made)
        try:
            return original(self)
        finally:
            for ids in reversed(noting):
                ids.release()

    _wrapped.append(original)
    DataLoader.__iter__ = wrapper  # type: ignore[method-assign]


def _uninstall() -> None:
    while _wrapped:
        original = _wrapped.pop()
        if getattr(DataLoader.__iter__, "__wrapped__", None) is original:  # somebody else may have wrapped ours
            DataLoader.__iter__ = original  # type: ignore[method-assign]
