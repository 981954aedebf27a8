"""The latest steps with their batches: what a capsule needs besides its snapshot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from whyspike import batches
from whyspike.batchring import LEAST_BYTES, MOST_BYTES, BatchRing
from whyspike.errors import NotReplayable
from whyspike.ring import main_memory
from whyspike.stretch import Step, Stretch

HELD_STEPS = 160  # steps that are held: a snapshot every 64, 48 until the detector has the news, and what follows
HELD_BYTES = 1 << 30  # of batches, and no more than a sixteenth of the machine's memory
TRUST_AFTER = 16  # batches whose version counters were all the same
PATIENCE = 8  # batches of another form than the first one, after which they are counted

Say = Callable[[str, int, dict[str, object]], None]  # (name, step, data); of a name the first time counts
Hold = Callable[[Any, int], tuple[Any, Any] | None]  # (batch, step) → what is kept, version counters; None: look at it


class HeldSteps:
    """Holds the latest steps. Their batches are held as they are, or as copies where those cost less or must be.

    Args:
        store: whether batches are held at all.
        say: notes something in the record.
    """

    def __init__(self, *, store: bool, say: Say) -> None:
        # One step in, one step out: freeing many batches at once scatters the memory of the ones that follow.
        self.steps: deque[Step] = deque(maxlen=HELD_STEPS)
        self.end = 0  # the step after the last that has been read
        self._store, self._say = store, say
        self._room = HELD_STEPS  # steps whose batches memory has room for
        self._known = False  # the first batch has been seen
        self._copy = False  # keep copies of the batches, whatever they cost
        self._ring: BatchRing | None = None
        self._copied = self._others = 0  # batches that the ring has taken, and has not
        self._drawn = 0
        self._usual: Any = None
        # Version counters that every batch has when it is drawn, once that is known: they need not be read each time,
        # and a batch that has others when it is written was modified.
        self._fresh: Any = None

    # ------------------------------------------------------------------ a batch

    def hold(self, batch: Any, step: int) -> tuple[Any, Any]:
        """What is kept of a batch of this step, with the version counters of its tensors when it is not a copy."""
        if not self._known:
            self._first(batch)
        if not self._store:
            return None, None
        if self._ring is not None:
            copy = self._ring.keep(batch, step)
            if copy is not None:
                self._copied += 1
                return copy, None
            self._others += 1
            if self._others > max(PATIENCE, self._copied):
                self._ring = None
        if self._copy:
            return batches.clone(batch), None
        versions = versions_of(batch)
        self._drawn += 1
        if self._drawn == 1:
            self._usual = versions
        elif versions != self._usual:
            self._usual = None
        elif self._drawn >= TRUST_AFTER:
            self._fresh = versions
        return batch, versions

    @property
    def ordinary(self) -> Hold | None:
        """What holds an ordinary batch, as `hold` does it; None as long as every batch has to be looked at."""
        if not self._store:
            return _nothing
        if self._ring is not None:
            return self._copy_of
        return None if self._copy or self._fresh is None else self._as_it_is

    @property
    def as_it_is(self) -> bool:
        """Whether an ordinary batch is held as it is, or not at all: then it need not be when it is drawn."""
        return self.ordinary in (_nothing, self._as_it_is)

    def _copy_of(self, batch: Any, step: int) -> tuple[Any, Any] | None:
        copy = self._ring.keep(batch, step) if self._ring is not None else None
        if copy is None:
            return None
        self._copied += 1
        return copy, None

    def _as_it_is(self, batch: Any, step: int) -> tuple[Any, Any]:
        return batch, self._fresh

    def _first(self, batch: Any) -> None:
        self._known = True
        if not self._store:
            return
        self._copy = _must_copy(batch)
        try:
            batches.flatten(batch)
        except NotReplayable as error:
            self._store = False
            self._say("batches-off", 0, {"reason": str(error)})
            return
        size = batches.n_bytes(batch)
        room = min(HELD_BYTES, main_memory() // 16) // max(1, size)
        self._room = max(1, room)
        if room < HELD_STEPS:
            self.steps = deque(self.steps, maxlen=self._room)
        if size <= MOST_BYTES and (size >= LEAST_BYTES or self._copy) and BatchRing.fits(batch):
            self._ring = BatchRing(batch, lambda: self.most)

    # ------------------------------------------------------------------ the steps

    @property
    def most(self) -> int:
        """How many steps are held, at most."""
        assert self.steps.maxlen is not None
        return self.steps.maxlen

    @property
    def begin(self) -> int:
        """The first step that is held."""
        return self.end - len(self.steps)

    def __getitem__(self, step: int) -> Step:
        return self.steps[step - self.begin]

    def follow(self, stretch: Stretch, wanted: int) -> None:
        """Steps have been read; `steps` has them already.

        A batch that the training has modified in place is not what was drawn. From the first such on, copies are kept.
        Every batch is looked at again before it is written.

        Args:
            wanted: hold so many from now on, where there is room.
        """
        steps = stretch.steps
        self.end = stretch.first + len(steps)
        wanted = min(self._room, wanted)
        if wanted > self.most:
            self.steps = deque(self.steps, maxlen=wanted)
        if self.steps and self.steps[-1] is not steps[-1]:  # losses on a GPU have been read meanwhile
            for _ in range(min(len(steps), len(self.steps))):
                self.steps.pop()
            self.steps.extend(steps)
        if self._copy or not self._store:
            return
        for _, draws, _, _ in steps if self._fresh is None else steps[-1:]:
            for batch, versions, *_ in draws:
                if versions is not None and versions != versions_of(batch):
                    self._copy, self._fresh = True, None
                    self._say("batches-modified", stretch.first, {})
                    return


def _nothing(batch: Any, step: int) -> tuple[Any, Any]:
    return None, None


def versions_of(batch: Any) -> Any:
    """The version counter of every tensor."""
    if type(batch) is list or type(batch) is tuple:
        try:
            return [t._version for t in batch]
        except AttributeError:
            pass
    return batches.versions(batch)


def _must_copy(batch: Any) -> bool:
    """Whether a batch holds arrays (no version counter) or memory shared with workers (a file handle per tensor)."""
    found: list[bool] = []
    batches.walk(batch, lambda t: found.append(t.device.type == "cpu" and t.is_shared()), lambda a: found.append(True))
    return any(found)
