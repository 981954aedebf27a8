"""Listening to calls that are not ours: wrappers that only look, in place for as long as somebody listens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

Listener = TypeVar("Listener")


class Listeners(Generic[Listener]):
    """The listeners of one kind of call, to be iterated over by its wrappers.

    Args:
        install: puts the wrappers in place by `wrap`; called when the first listener comes.
    """

    def __init__(self, install: Callable[[], None]) -> None:
        self._install = install
        self._listeners: list[Listener] = []
        self._wrapped: list[tuple[Any, str, Any]] = []

    def __iter__(self) -> Iterator[Listener]:
        return iter(tuple(self._listeners))  # one may stop listening while it is called

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Let it listen until the returned function is called; after the last one the wrappers are gone."""
        if not self._listeners:
            self._install()
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)
                if not self._listeners:
                    self._uninstall()

        return stop

    def wrap(self, places: Sequence[tuple[Any, str]], make: Callable[[Any], Any]) -> None:
        """Put `make(original)` in place of a function, at every one of the places where it stands."""
        original = getattr(*places[0])
        wrapper = functools.wraps(original)(make(original))
        for owner, name in places:
            if getattr(owner, name, None) is original:
                self._wrapped.append((owner, name, original))
                setattr(owner, name, wrapper)

    def _uninstall(self) -> None:
        while self._wrapped:
            owner, name, original = self._wrapped.pop()
            if getattr(getattr(owner, name), "__wrapped__", None) is original:  # somebody else may have wrapped ours
                setattr(owner, name, original)
