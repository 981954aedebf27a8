"""The loss of a script that has none to call: its tapes as one function, and where that function is the script.

A tape has the script's own numbers on it as constants, so it is never taken on faith: what is used of a run are the
stretches in which an unchanged replay is bitwise the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from whyspike import batches
from whyspike.errors import NotReplayable, WhySpikeError
from whyspike.seams import BASELINE
from whyspike.tape import Samples, Tape

if TYPE_CHECKING:
    from whyspike.replay import Subject

EQUAL = 1e-5  # relative: a float32 mean of some thousand losses is exact to about 1e-6


class TapedLoss:
    """`loss_fn(model, batch)` of a script that has none: the tape that fits the batch.

    A tape is recorded of the first batch and of the first of another number of samples. Numbers that follow the number
    of samples from one to the other (`loss / len(x)`) are read as such, and then one tape fits any batch. Where the
    batches have one size alone and a number on the tape is just that size, nobody knows what it would be in another.

    Args:
        tapes: of batches of different sizes, the first one of the size that is usual.
        steps: of single steps, one for each micro-batch, where they were recorded. They hold the numbers that the
            script computed in that very step, and are used where a replay stands (`stands`).
    """

    __name__ = "the script's loss"

    def __init__(self, tapes: Sequence[Tape], steps: Mapping[int, Sequence[Tape]] | None = None) -> None:
        self.tapes, self.steps = list(tapes), dict(steps or {})
        self.carried: tuple[int, int] = (0, 0)  # stretches of the run that it carries, and all of them; see `trusted`
        whole = self.tapes[0]
        for other in self.tapes[1:]:
            whole = None if whole is None else merged(whole, other)
        alone = len(self.tapes) == 1 and self.tapes[0].names_its_size()
        self._any: Tape | None = None if alone else whole
        self._own: list[Tape] = []  # of the step where the replay stands
        self._calls = 0

    def stands(self, step: int | None) -> None:
        """A replay stands before this step; None: nowhere, the tapes by size are used."""
        self._own, self._calls = list(self.steps.get(step, ())) if step is not None else [], 0

    @contextmanager
    def nowhere(self) -> Iterator[None]:
        """As one function throughout, whatever step a replay stands at: for the probe."""
        before = self._own, self._calls
        self._own = []
        try:
            yield
        finally:
            self._own, self._calls = before

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the generators of the script's own, and where the replay stands, back as they were."""
        own = {id(g): g for t in (*self.tapes, *(t for o in self.steps.values() for t in o)) for g in t.generators()}
        states = [(g, g.get_state()) for g in own.values()]
        try:
            yield
        finally:
            self.stands(None)
            for generator, state in states:
                generator.set_state(state)

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        n = batches.size(batch)
        chosen = self._chosen(n)
        if chosen is None:
            raise NotReplayable(
                f"on the tape is a number that may be the size of the batches, {self.tapes[0].n}; what the loss of "
                f"{n} samples is cannot be told"
            )
        try:
            return chosen(model, batch)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise NotReplayable(f"what the script does with a batch does not fit this one ({error})") from error

    def per_sample(self, model: nn.Module, batch: Any, copies: int) -> np.ndarray | None:
        """What the script would log for each sample, `copies` times in a batch of its own: float64 [samples].

        The last call again with `reduction="none"`, exact also where a sample's loss depends on the others through
        batch normalisation. None where the mean or the sum of that is not the loss.
        """
        n = batches.size(batch)
        chosen = self._chosen(n)
        try:
            found = None if chosen is None else chosen.rows(model, batch)
        except Exception:  # it was not made for that; the copies will tell
            return None
        if found is None or found[1].dim() == 0 or found[1].numel() % n:
            return None
        loss, rows = float(found[0].detach()), found[1].detach().double().reshape(n, -1)
        if math.isclose(float(rows.mean()), loss, rel_tol=EQUAL):
            return rows.mean(1).cpu().numpy()
        if math.isclose(float(rows.sum()), loss, rel_tol=EQUAL):
            return rows.sum(1).cpu().numpy() * copies
        return None

    def _chosen(self, n: int) -> Tape | None:
        if not self._own:
            return next((t for t in self.tapes if t.n == n), self._any)
        own = self._own[min(self._calls, len(self._own) - 1)]
        self._calls += 1
        if own.n == n or not own.names_its_size():
            return own
        others = (merged(own, other, lenient=True) for other in self.tapes if other.n != own.n)
        return next((tape for tape in others if tape is not None), None)

    @property
    def divisor(self) -> int | None:
        """By what the script divides the loss of a micro-batch before it calls backward; None where it does not."""
        return self.tapes[0].divisor


def merged(a: Tape, b: Tape, *, lenient: bool = False) -> Tape | None:
    """Two tapes of batches of other sizes as one for any size; None where they differ in anything else.

    Args:
        lenient: they are of other steps, too: a value that does not follow the size is that of `a`.
    """
    if [op.name for op in a.ops] != [op.name for op in b.ops] or a.root != b.root:
        return None
    try:
        ops = [
            replace(
                one,
                args=_merge(one.args, other.args, a.n, b.n, lenient),
                kwargs=_merge(one.kwargs, other.kwargs, a.n, b.n, lenient),
            )
            for one, other in zip(a.ops, b.ops, strict=True)
        ]
    except (ValueError, KeyError):
        return None
    made = Tape(ops, a.root, a.n, a.modified or b.modified)
    made.divisor = a.divisor
    return made


def _merge(x: Any, y: Any, n: int, m: int, lenient: bool) -> Any:
    number = (int, float, Samples)
    if type(x) in number and type(y) in number:
        ours = x.times * n if isinstance(x, Samples) else x
        theirs = y.times * m if isinstance(y, Samples) else y
        if ours == theirs:
            return ours
        if ours * m == theirs * n and ours % n == 0:
            return Samples(int(ours // n))
        return _first_of(x, lenient, "a number that does not follow the size")
    if type(x) is not type(y):
        return _first_of(x, lenient, "another kind of value")
    if type(x) in (tuple, list):
        return type(x)(_merge(p, q, n, m, lenient) for p, q in zip(x, y, strict=True))
    if type(x) is dict:
        return {k: _merge(x[k], y[k], n, m, lenient) for k in x | y}
    if isinstance(x, torch.Tensor) or x is y or x == y:
        return x
    return _first_of(x, lenient, "another value")


def _first_of(x: Any, lenient: bool, words: str) -> Any:
    if not lenient:
        raise ValueError(words)
    return x


# --------------------------------------------------------------------------- trust


def trusted(subject: Subject, progress: Callable[[str, float], None] | None = None) -> tuple[int, str | None]:
    """Leave the subject those capsules alone from which an unchanged replay is bitwise the record.

    Every recorded step of a capsule is run, and its loss compared; so are the weights, where the next capsule begins.

    Returns:
        How many capsules stay, and why the first that does not was left out.
    """
    from whyspike.replay import Window

    good, reason = [], None
    starts = {subject.capsule(path).step: path for path in subject.run.capsules}
    with subject.kept():
        for done, (first, path) in enumerate(starts.items()):
            if progress:
                progress("replaying recorded steps unchanged", done / len(starts))
            held = [s.step for s in subject.capsule(path).steps if s.batches]
            if not held:
                continue
            try:
                for record, loss in subject.steps(Window(path, held[-1], None), BASELINE, None, stop=held[-1] + 1):
                    if loss is None or not _same(loss, record.loss):
                        odd = f"at step {record.step} the tape gives {loss!r}, the script had {record.loss!r}"
                        raise NotReplayable(odd)
                    other = starts.get(record.step + 1)
                    if other is not None and not _at(subject, other):
                        raise NotReplayable(f"after step {record.step} the weights are not those of the script")
            except WhySpikeError as error:
                reason = reason or f"from step {first} on, {error}"
                continue
            good.append(path)
    subject.run = replace(subject.run, capsules=tuple(good))
    return len(good), reason


def _same(ours: float, theirs: float) -> bool:
    return ours == theirs or (math.isnan(ours) and math.isnan(theirs))


def _at(subject: Subject, path: Any) -> bool:
    """Whether the network has the weights of this capsule, bit for bit; NaN is NaN."""
    stored = subject.capsule(path).tensors
    return all(
        torch.equal(p.detach().cpu().nan_to_num(), stored[f"param.{name}"].nan_to_num())
        for name, p in subject.model.named_parameters()
    )
