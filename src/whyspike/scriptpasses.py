"""What a script's loops are handed in place of their loaders' iterators."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count, takewhile
from typing import TYPE_CHECKING, Any, cast

from whyspike.hooks import Begin
from whyspike.loader_ids import compact
from whyspike.passes import Pass

if TYPE_CHECKING:
    from whyspike.scriptwatch import ScriptWatch

AT_ONCE = 256  # batches that are handed out without a look, at most: so many are held if no update comes


class Drawn(chain):  # type: ignore[type-arg]
    """The batches of a pass, as the loader's own iterator: with its length and its attributes."""

    source: Iterator[Any]

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


class ScriptPass(Pass):
    """A pass of the first recorder; for the others it is an epoch, too. The loop is handed what `drawn` makes."""

    def __init__(self, watch: ScriptWatch, loader: Any, begin: Begin) -> None:
        first, *self._others = [one.recorder for one in watch.watched]
        self._watch, self._one, self._taping = watch, watch.watched[0], watch.taping
        self._n = 0  # batches that were drawn
        self._last: Any = None  # the indices of the last one that was looked at
        self._alike = False  # the next one may be handed out without a look, as far as the last one says
        super().__init__(first, loader, begin)
        for recorder in self._others:
            recorder._epoch_begins(loader)

    def drawn(self) -> Drawn:
        """An iterator over the batches; what the loader raises passes through no frame of ours."""
        made = cast(Drawn, Drawn.from_iterable(self._pieces()))
        made.source = self._source
        return made

    def _pieces(self) -> Iterator[Iterator[Any]]:
        """Iterators over the batches that come next, until the loader ends."""
        recorder = self._recorder
        while not recorder._off:
            n, before = self._ordinary_ahead(), self._n
            if n:
                yield recorder._handout.batches(self._source, n, self._rows)
                recorder._catch_up()
                self._n += recorder._handout.ended()
                self._alike = self._n == before + n  # or the next one is looked at, or there is none
            else:
                if recorder._look:
                    self._looks()
                yield map(self._take, takewhile(lambda _: self._n == before, count()), self._source)  # noqa: B023
                if self._n == before:
                    self.close(finished=True)
                    return
        yield self._source

    def _ordinary_ahead(self) -> int:
        """How many batches may be handed out without a look: not the last of an epoch, which may be smaller."""
        recorder = self._recorder
        keeper, total = recorder._keeper, recorder._batches_per_epoch
        if recorder._look or not self._alike or self._watch._alone is not self._one:
            return 0
        if total is None or keeper is None or not keeper.held.as_it_is or recorder._scale is not None:
            return 0
        return max(0, min(AT_ONCE, recorder._attention - recorder._step, total - 1 - self._n))

    def _take(self, lost: int, batch: Any) -> Any:
        """A batch was drawn that is looked at; in place of so many before it the loader has raised."""
        recorder, last = self._recorder, self._last
        self._n, self._alike = self._n + lost + 1, False
        if recorder._off:
            return batch
        try:
            rows = self._rows
            for _ in range(min(lost, len(rows))):
                rows.popleft()
            self._last = ids = rows.popleft() if rows else ()
            if not recorder._ordinary(batch, ids):
                batch = self._noted(batch, compact(ids))
            # A sampler that uses its list again has lost what was in it when the update is made.
            own = last is not None and ids is not last
            self._alike = own and hasattr(ids, "__len__") and len(ids) == recorder._nominal
        except Exception as error:
            recorder._fail(error)
        return batch

    @property
    def _rows(self) -> deque[Any]:
        """The indices of the batches that were drawn."""
        return deque() if self._ids is None else self._ids.seen

    def _looks(self) -> None:
        try:
            if self._one.evaluation is not None:
                self._watch._training(self._one)
            if self._taping.busy:
                self._taping.cancel()
            super()._looks()
        except Exception as error:
            self._recorder._fail(error)

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
