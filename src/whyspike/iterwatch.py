"""Seeing that a DataLoader begins an epoch, where the loop is not ours: its sample ids are noted on their way.

`DataLoader.__iter__` is wrapped on its class while somebody listens. The wrapper only looks: the original makes the
iterator, and the loader has its own sampler back before the first batch is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from whyspike.listeners import Listeners
from whyspike.loader_ids import LoaderIds

Listener = Callable[[Any], LoaderIds | None]  # called with the loader before its iterator is made


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(loader)` before a DataLoader makes an iterator, until the returned function is called.

    What it returns, if anything, is released once the iterator is there.
    """
    return _listeners.listen(listener)


_listeners: Listeners[Listener] = Listeners(lambda: _listeners.wrap([(DataLoader, "__iter__")], _told_before))


def _told_before(original: Any) -> Any:
    def wrapper(self: Any) -> Iterator[Any]:
        noting: list[LoaderIds] = []
        for listener in _listeners:
            with suppress(Exception):  # never into the user's code
                made = listener(self)
                if made is not None:
                    noting.append(made)
        try:
            return original(self)
        finally:
            for ids in reversed(noting):
                ids.release()

    return wrapper
