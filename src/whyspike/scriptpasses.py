"""What a script's loops are handed in place of their loaders' iterators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from whyspike.hooks import Begin
from whyspike.passes import Pass

if TYPE_CHECKING:
    from whyspike.scriptwatch import ScriptWatch


class ScriptPass(Pass):
    """A pass of the first recorder; for the others it is an epoch, too."""

    def __init__(self, watch: ScriptWatch, loader: Any, begin: Begin) -> None:
        first, *self._others = [one.recorder for one in watch.watched]
        self._watch, self._one, self._taping = watch, watch.watched[0], watch.taping
        super().__init__(first, loader, begin)
        for recorder in self._others:
            recorder._epoch_begins(loader)

    def _looks(self) -> None:
        if self._one.evaluation is not None:
            self._watch._training(self._one)
        if self._taping.busy:
            self._taping.cancel()
        super()._looks()

    def _noted(self, batch: Any, ids: Any) -> Any:
        super()._noted(batch, ids)
        recorder, taping = self._recorder, self._taping
        if self._watch._off:
            return batch
        try:
            batch = taping.drawn(batch, recorder)
            if taping.busy:
                self._watch.look_closer()
            recorder._look = recorder._look or taping.busy or taping.lacks(recorder._nominal)
        except Exception as error:
            self._watch._fail(error)
        return batch

    def close(self, *, finished: bool = False) -> None:
        if not self.ended:
            for recorder in self._others:
                with suppress(Exception):
                    recorder._epoch_ends(finished)
        super().close(finished=finished)


class Evaluated:
    """A pass over a loader without gradients: an evaluation, though the network's mode does not say so."""

    def __init__(self, watch: ScriptWatch, source: Iterator[Any]) -> None:
        self._watch, self._source, self._over = watch, source, False
        self._begun = [one for one in watch.watched if one.recorder._step and one.evaluation is None]
        for one in self._begun:
            watch._evaluation(one)

    def __iter__(self) -> Evaluated:
        return self

    def __len__(self) -> int:
        return len(self._source)  # type: ignore[arg-type]

    def __next__(self) -> Any:
        try:
            return next(self._source)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if not self._over:
            self._over = True
            for one in self._begun:
                self._watch._training(one)

    def __getattr__(self, name: str) -> Any:
        if name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)

    def __del__(self) -> None:
        with suppress(Exception):
            self._end()
