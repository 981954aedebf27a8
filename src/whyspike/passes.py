"""One pass over a loader, and an evaluation: what the recorder hands to the user's loop in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from whyspike.frozen import rng_state
from whyspike.loader_ids import LoaderIds, compact

if TYPE_CHECKING:
    from whyspike.record import Recorder


class Batches:
    """What `rec.batches(loader)` returns: the loader, with its length and its attributes."""

    def __init__(self, recorder: Recorder, loader: Any) -> None:
        self._recorder, self._loader = recorder, loader

    def __iter__(self) -> Iterator[Any]:
        recorder = self._recorder
        if recorder._off or recorder._evaluating:
            return iter(self._loader)
        return Pass(recorder, self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Pass:
    """An iterator over the batches of one epoch, noted on their way.

    The loader's own iterator is made at once, as `iter(loader)` does it: making it may draw random numbers.

    Args:
        begin: makes the loader's own iterator.
    """

    def __init__(self, recorder: Recorder, loader: Iterable[Any], begin: Callable[[Any], Iterator[Any]] = iter) -> None:
        self._recorder, self._ended = recorder, False
        self._ids: LoaderIds | None = None
        self._before: Any = None
        try:
            self._before = recorder._rng.compare_at(recorder._passes)
            self._ids = LoaderIds(loader)
            recorder._epoch_begins(loader)
        except Exception as error:
            recorder._fail(error)
        try:
            self._source = begin(loader)  # what a loader raises is the user's, and goes through
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether the loader has come to its end, or the pass was given up."""
        return self._ended

    def __iter__(self) -> Pass:
        return self

    def __len__(self) -> int:
        return len(self._source)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # the loader raised before there was one
            raise AttributeError(name)
        return getattr(self._source, name)

    def __next__(self) -> Any:
        recorder = self._recorder
        if recorder._look:
            self._looks()
        try:
            batch = next(self._source)
        except StopIteration:
            self.close(finished=True)
            raise
        except BaseException:
            self.close()
            raise
        ids = self._ids
        if ids is None or recorder._off:
            return batch
        try:
            rows = ids.seen.popleft() if ids.seen else ()
            if not recorder._ordinary(batch, rows):
                return self._noted(batch, compact(rows))
        except Exception as error:
            recorder._fail(error)
        return batch

    def _looks(self) -> None:
        """A batch is about to be drawn that needs more than appending."""
        recorder = self._recorder
        if recorder._rng.compare and not recorder._off:
            self._before = rng_state()

    def _noted(self, batch: Any, ids: Any) -> Any:
        """It was drawn; what is returned is handed to the loop."""
        if self._ids is not None:
            self._ids.release()
        self._recorder._drawn(batch, ids, self._before)
        self._before = None
        return batch

    def close(self, *, finished: bool = False) -> None:
        """The pass is over, at the loader's end or before it. May be called more than once."""
        if self._ended:
            return
        self._ended = True
        if self._ids is not None:
            self._ids.close()
            self._ids = None
        recorder = self._recorder
        if not recorder._off:
            try:
                recorder._epoch_ends(finished)
            except Exception as error:
                recorder._fail(error)

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            with suppress(Exception):  # the interpreter may be going down
                self.close()


class Evaluating:
    """A context manager around an evaluation: what passes inside is not the training's."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        recorder = self._recorder
        if not recorder._off:
            recorder._evaluating += 1
            recorder._catch_up()
            if recorder._between is not None:
                try:
                    recorder._between.enters()
                except Exception as error:
                    recorder._fail(error)
            self._since = monotonic()

    def __exit__(self, *exc: object) -> None:
        recorder = self._recorder
        if recorder._off or not recorder._evaluating:
            return
        recorder._evaluating -= 1
        recorder._rng.evaluated()
        recorder._look_closer()
        seconds = monotonic() - self._since
        data: dict[str, object] | None = {"seconds": round(seconds, 6)}
        try:
            if recorder._between is not None:
                data = recorder._between.leaves(seconds, len(recorder._draws))
            if data is not None:
                recorder._writer.mark(recorder._step, "evaluation", data)
        except Exception as error:
            recorder._fail(error)
