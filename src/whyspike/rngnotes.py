"""Which generators a loader draws from decides what a replay must put back, and at which steps.

A stored batch is not drawn again in a replay. If drawing it moved a global generator, the state after it has to be
stored with the step: always at the start of an epoch, where a DataLoader draws its seed from torch's generator;
after an evaluation; and at every step once the loader has been seen to draw (random augmentation).
"""

from __future__ import annotations

from typing import Any

import torch

from whyspike import frozen
from whyspike.strides import counts

COMPARE_STEPS = 16  # steps at whose draw the generators are compared, and later now and then


class RngNotes:
    """Decides for every step whether the generators are noted after its batch was drawn."""

    def __init__(self) -> None:
        self.compare = False  # look at the generators around the next draw
        self.draws = False  # drawing a batch uses them
        self._start_draws = False  # beginning an epoch uses others than torch's
        self._starts = self._evaluated = False

    def epoch_begins(self) -> None:
        self._starts = True

    def epoch_ends(self) -> None:
        self.compare = False

    def evaluated(self) -> None:
        """An evaluation may have drawn random numbers."""
        self._evaluated = True

    def compare_at(self, passes: int) -> dict[str, Any] | None:
        """The generators before an epoch begins, at those epochs where they are compared."""
        return frozen.rng_state() if counts(passes, 4) else None

    def look_again(self, step: int, occasion: int) -> None:
        """Compare around the next draw, now and then."""
        if not self.draws and (step < 4 * COMPARE_STEPS or counts(occasion)):
            self.compare = True

    def note(self, step: int, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """The state to keep with a step whose first batch has just been drawn; None when none is needed."""
        starts, evaluated = self._starts, self._evaluated
        if not (starts or evaluated or self.draws or before is not None):
            return None
        now = noted = None
        if before is not None:
            now = frozen.rng_state()
            if starts:
                self._start_draws = self._start_draws or not same_rng(before, now, torch_too=False)
            else:
                self.draws = self.draws or not same_rng(before, now)
                self.compare = step < COMPARE_STEPS and not self.draws
        if self.draws or evaluated or (starts and self._start_draws):
            noted = now or frozen.rng_state()
        elif starts:
            noted = torch_rng_state()
        if starts and step < COMPARE_STEPS:
            self.compare = not self.draws
        self._starts = self._evaluated = False
        return noted

    def note_more(self, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """The same for a further batch of an accumulated step."""
        now = None
        if before is not None and not self.draws:
            now = frozen.rng_state()
            self.draws = not same_rng(before, now)
        return (now or frozen.rng_state()) if self.draws else None


def same_rng(a: dict[str, Any], b: dict[str, Any], *, torch_too: bool = True) -> bool:
    """Whether two states of `frozen.rng_state` are the same; with torch_too=False those of Python and numpy alone."""
    if a["python"] != b["python"] or (a.get("numpy") is not b.get("numpy") and _numpy(a) != _numpy(b)):
        return False
    if not torch_too:
        return True
    gpus = zip(a.get("cuda", ()), b.get("cuda", ()), strict=False)
    return torch.equal(a["torch"], b["torch"]) and all(torch.equal(x, y) for x, y in gpus)


def _numpy(state: dict[str, Any]) -> tuple[Any, ...]:
    """What differs between two states of numpy's global generator, as bytes and numbers: arrays compare slowly."""
    found = state.get("numpy")
    if found is None:
        return ()
    inner = found["state"]
    key = inner.get("key")
    return (
        None if key is None else key.tobytes(),
        *(v for k, v in inner.items() if k != "key"),
        found.get("has_gauss"),
        found.get("gauss"),
    )


def torch_rng_state() -> dict[str, Any]:
    """The generators of torch alone: numpy's and Python's cost twenty times as much to read."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back a whole state, or one of `torch_rng_state`."""
    if "python" in state:
        frozen.restore_rng(state)
        return
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
