"""The tapes of a script that runs: which batches are recorded on their way to the loss, and what is kept of it.

Under `whyspike run` that is one batch of every size, for a recorded step costs more than another one. Where a closer
record was asked for it is every batch: a number that the script computes anew in every step is a constant on the tape
of one step, and right on that step's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from whyspike import batches
from whyspike.errors import NotReplayable
from whyspike.inlinetape import InlineRecording
from whyspike.scriptprobe import ScriptProbe
from whyspike.tape import Recording, Tape, compiles
from whyspike.tapedloss import TapedLoss

if TYPE_CHECKING:
    import torch

    from whyspike.measure import MakeProbe
    from whyspike.record import Recorder

TRIES, SIZES = 6, 3  # batches whose way to the loss is recorded, and sizes of batches for which it is kept
PRUNE = 256  # steps on tape after which those are let go of that no capsule holds


class ScriptTapes:
    """Records tapes between a batch and its loss.

    Args:
        every: of every batch, not of one of each size.
    """

    def __init__(self, *, every: bool = False) -> None:
        self.tapes: dict[int, Tape] = {}  # by the samples of their batch
        self.steps: dict[int, list[Tape]] = {}  # by the step, one for each micro-batch
        self.untaped = ""  # why there is no tape of some batch
        self.probed = False  # a live probe was asked for, or is not wanted
        self.halve = False  # hand out half of a batch, once; for a run that is thrown away
        self._every = every
        self._recording: Recording | None = None
        self._batch: Any = None
        self._rng: Any = None  # generators when the forward pass of a batch began that no loader drew
        self._at = (0, 0)  # step and micro-batch of what is recorded
        self._tries = 0
        self._left_over: list[Recording] = []
        self.busy = False  # whether something is recorded, or could not be ended yet

    def lacks(self, n: int) -> bool:
        """Whether the way of a further batch of so many samples would be recorded."""
        return self._every or self.halve or (n not in self.tapes and self._wanting)

    @property
    def _wanting(self) -> bool:
        return self._every or (self._tries < TRIES and len(self.tapes) < SIZES)

    def drawn(self, batch: Any, recorder: Recorder) -> Any:
        """The batch was drawn: record its way, if that is not known. What is returned is handed to the script."""
        if self.halve and self.tapes:
            batch = self._half(batch, recorder)
        draws = recorder._draws
        if draws and draws[-1][3] > 0 and (self._every or draws[-1][3] not in self.tapes):
            self._begin(batch, draws[-1][3], recorder, len(draws) - 1)
        return batch

    def _begin(self, batch: Any, n: int, recorder: Recorder, micro: int) -> None:
        if not recorder._step or not self._wanting or compiles():
            return
        self._tries += 1
        self._recording, self._batch, self._at = Recording(batch, n), batch, (recorder._step, micro)
        self._recording.start()
        self.busy = True

    def wait(self, recorder: Recorder) -> None:
        """What comes next may be a step whose batch no loader draws: record it from where its network begins."""
        if not self._every or self.busy or not recorder._step or compiles():
            return

        def begins() -> None:
            self._rng = recorder._begins()

        self._recording, self._at = InlineRecording(begins), (recorder._step, len(recorder._draws))
        self._recording.start()
        self.busy = True

    def _half(self, batch: Any, recorder: Recorder) -> Any:
        """Half of the batch, once: what depends on its size then shows on a second tape."""
        with suppress(Exception):
            n = batches.size(batch)
            if n >= 4:
                batch = batches.take(batch, list(range(n // 2)), n)
                recorder._draws = [(*draw[:3], n // 2, *draw[4:]) for draw in recorder._draws]
        self.halve = False
        return batch

    def ended(self, loss: torch.Tensor, recorder: Recorder) -> None:
        """`backward` was called on the loss of what is recorded."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        if not recording.stop():
            self._left_over.append(recording)
        self.busy = bool(self._left_over)
        if isinstance(recording, InlineRecording):
            found = recording.found(loss)
            made = found if isinstance(found, str) else found[0]
            if not isinstance(found, str):
                recorder._given(found[1], self._rng)
        else:
            made = recording.finish(loss, self._batch)
        self._batch = None
        if isinstance(made, str):
            self.untaped = self.untaped or made
            return
        if len(self.tapes) < SIZES:
            self.tapes.setdefault(made.n, made)
        if self._every:
            step, micro = self._at
            own = self.steps.setdefault(step, [])
            if len(own) == micro:
                own.append(made)
            if len(self.steps) % PRUNE == 0:
                self._prune(recorder)

    def _prune(self, recorder: Recorder) -> None:
        keeper = recorder._keeper
        if keeper is not None:
            self.steps = {step: own for step, own in self.steps.items() if keeper.covers(step)}

    def probe_of(self, recorder: Recorder) -> MakeProbe | None:
        """What makes the live probe of the script, once there is a tape for one; asked for once."""
        tape = next(iter(self.tapes.values()), None)
        if tape is None or self.probed:
            return None
        self.probed = True

        def make(pieces: Sequence[Any]) -> ScriptProbe:
            alike = [p for p in pieces if batches.size(p) == tape.n] or ([] if tape.names_its_size() else list(pieces))
            if not alike:
                raise NotReplayable(f"the loss of other than {tape.n} samples is not known")
            return ScriptProbe(tape, recorder.model, alike)

        return make

    def cancel(self) -> None:
        """No loss has come from the batch that is recorded."""
        recording, self._recording, self._batch = self._recording, None, None
        if recording is not None and not recording.stop():
            self._left_over.append(recording)
        self._left_over = [r for r in self._left_over if not r.stop()]
        self.busy = bool(self._left_over)

    def loss_fn(self, micro: int) -> TapedLoss | None:
        """The script's loss as a function of model and batch; None where there is no tape.

        Args:
            micro: micro-batches of a step; where the script divides their losses by that, the function does not.
        """
        tapes, steps = list(self.tapes.values()), self.steps
        if tapes and micro > 1 and all(t.divided_by() == micro for t in tapes):
            tapes = [t.undivided() for t in tapes]
            whole = {s: own for s, own in steps.items() if all(t.divided_by() == micro for t in own)}
            steps = {s: [t.undivided() for t in own] for s, own in whole.items()}
        return TapedLoss(tapes, steps) if tapes else None
