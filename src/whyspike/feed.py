"""A recorder in a loop that a framework owns: it is told of batches, losses and updates as they come.

What `rec.batches(loader)` and `rec.step(loss)` see in a user's own loop, in pieces: a framework says when it draws a
batch, what loss a micro-batch had, and when it has updated. Like the recorder, nothing here raises into the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whyspike import iterwatch
from whyspike.frozen import rng_state
from whyspike.loader_ids import LoaderIds, compact, length
from whyspike.runfolder import HEADER

if TYPE_CHECKING:
    from whyspike.record import Recorder


class Iterators:
    """The sample ids of the newest iterator that a DataLoader has made. A framework may make it before it trains.

    Args:
        ignored: whether what iterates over a loader now is no training; called with the loader.
        known_as: the loader as the record and the replay know it, where a framework makes one that is hard to read.
    """

    def __init__(
        self,
        ignored: Callable[[Any], bool] = lambda loader: False,
        known_as: Callable[[Any], Any] = lambda loader: loader,
    ) -> None:
        self.ids: LoaderIds | None = None
        self.loader: Any = None  # which one made it
        self._ignored, self._known_as = ignored, known_as
        self._stop = iterwatch.listen(self._made)

    def _made(self, loader: Any) -> LoaderIds | None:
        if self._ignored(loader):
            return None
        self.ids, self.loader = LoaderIds(loader), self._known_as(loader)
        return self.ids

    def take(self) -> Any:
        """The dataset indices of the next batch of that iterator; none at all where they are not known."""
        seen = self.ids.seen if self.ids is not None else ()
        if len(seen) > 1 and seen[0] is seen[1]:  # a list that is used again: its content is lost
            self.ids = None
            return ()
        return seen.popleft() if seen else ()  # type: ignore[union-attr]

    def close(self) -> None:
        """Listen no longer."""
        self._stop()
        if self.ids is not None:
            self.ids.close()
        self.ids = self.loader = None


class Feed:
    """Feeds a recorder from the hooks of a framework.

    Args:
        recorder: made by `watch`.
        iterators: where the sample ids come from.
        epoch, index: where the training stands; more than 0 when it was resumed.
    """

    def __init__(self, recorder: Recorder, iterators: Iterators, *, epoch: int = 0, index: int = 0) -> None:
        self.recorder, self.iterators = recorder, iterators
        self._index = index  # steps of the epoch that were made before the record goes on
        self._open = False  # an epoch
        self._left: int | None = None  # batches until it ends; None where it cannot be known
        self._before: Mapping[str, Any] | None = None  # the generators at the end of the step before
        self._losses: list[Any] = []
        self._evaluation: Any = None
        if recorder.recording and epoch:
            recorder._passes = epoch

    @property
    def on(self) -> bool:
        """Whether steps are being recorded."""
        return self.recorder.recording

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the record of a resumed training goes on in the same folder."""
        recorder = self.recorder
        recorder.flush()  # the folder is made when the first steps are written
        if not recorder.recording or recorder.path is None:
            return {}
        epoch, begun = recorder._context[:2]
        ended = not self._open
        return {
            "path": str(recorder.path.resolve()),
            "step": recorder._step,
            "epoch": max(0, epoch) + int(ended and epoch >= 0),
            "index": 0 if ended else recorder._step - begun,
        }

    def begins(self, loader: Any = None) -> None:
        """An epoch begins; the next batch is its first. Not needed where the loader says so itself."""
        self.ends(finished=False)
        recorder = self.recorder
        if not recorder.recording:
            return
        try:
            loader = loader if loader is not None else self.iterators.loader
            recorder._epoch_begins(loader)
            self._open, self._left = True, length(loader)
            if self._index:
                epoch, begun, *rest = recorder._context
                recorder._context = (epoch, begun - self._index, *rest)  # type: ignore[assignment]
                self._left, self._index = None, 0
        except Exception as error:
            recorder._fail(error)

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation is going on."""
        return self._evaluation is not None

    def drawn(self, batch: Any, n: int | None = None) -> None:
        """A batch was drawn; its forward pass comes next.

        Args:
            n: its samples, where the batch itself cannot be seen.
        """
        recorder = self.recorder
        if recorder._off:
            return
        if not self._open:
            self.begins()
        try:
            if n is not None:
                recorder._draws = [*recorder._draws, (None, None, None, n, None)]
                return
            rows = self.iterators.take()
            if self._left is not None:
                self._left -= 1
            before, self._before = self._before, None
            if not recorder._ordinary(batch, rows):
                recorder._drawn(batch, compact(rows), before)
        except Exception as error:
            recorder._fail(error)

    def loss(self, value: Any) -> None:
        """The loss of a micro-batch, as one number."""
        self._losses.append(value.detach() if isinstance(value, torch.Tensor) else value)

    def updated(self) -> None:
        """The optimizer has made its update with the micro-batches since the last one."""
        losses, self._losses = self._losses, []
        recorder = self.recorder
        if recorder._off or not losses:
            return
        recorder.step(losses[0] if len(losses) == 1 else mean_loss(losses))
        if recorder._rng.compare and not recorder._off:
            self._before = rng_state()
        if self._left is not None and self._left <= 0:
            self.ends()

    def ends(self, *, finished: bool = True) -> None:
        """The epoch has ended."""
        recorder = self.recorder
        if self._open and recorder.recording:
            try:
                recorder._epoch_ends(finished)
                self._before = recorder._rng.compare_at(recorder._passes)
            except Exception as error:
                recorder._fail(error)
        self._open, self._left = False, None

    def enters(self) -> None:
        """An evaluation begins."""
        if self._evaluation is None:
            self._evaluation = self.recorder.evaluating()
            self._evaluation.__enter__()

    def leaves(self) -> None:
        """The evaluation has ended."""
        made, self._evaluation = self._evaluation, None
        if made is not None:
            made.__exit__(None, None, None)

    def logged(self, values: Mapping[str, Any] | None) -> None:
        """What the framework logs, kept beside the record as far as it is numbers."""
        found = {}
        for name, value in (values or {}).items():
            with suppress(Exception):
                found[str(name)] = float(value)
        if found:
            self.recorder.log(**found)

    def close(self, reason: str = "end") -> None:
        """The training has ended."""
        self.leaves()
        self.ends(finished=reason == "end")
        self.iterators.close()
        self.recorder._close(reason)


def going_on(options: Mapping[str, Any], state: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, int]]:
    """The options of `watch` and the place in the epoch, for a new record or for one that goes on.

    Args:
        state: `Feed.state` out of a checkpoint; None or empty for a new record.
    """
    if not state or not (Path(state["path"]) / HEADER).is_file():
        return dict(options), {}
    going = {**options, "path": state["path"], "resume": int(state["step"])}
    return going, {"epoch": int(state["epoch"]), "index": int(state["index"])}


def mean_loss(losses: list[Any]) -> Any:
    """The mean of micro-losses, as a replay takes it; one alone is itself."""
    if len(losses) == 1:
        return losses[0]
    if all(isinstance(v, torch.Tensor) for v in losses):
        return torch.stack([v.reshape(()) for v in losses]).mean()
    return sum(float(v) for v in losses) / len(losses)
