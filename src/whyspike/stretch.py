"""What is noted of a step while it happens, and a stretch of such steps once they are read.

A step is noted as a tuple and not as an object with names: it is the one thing that every step pays for.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from whyspike.lossvalue import read_all

# A micro-batch of a step: (batch, version counters of its tensors, sample ids, number of samples, generator states)
Draw = tuple[Any, Any, Any, int, Any]
# What holds for many steps: (epoch, first step of the epoch, lr of the first group, hyperparameters of all groups)
Context = tuple[int, int, float, tuple[dict[str, Any], ...] | None]
# A step: (loss, its micro-batches, context, the last clipping as (step, max_norm, norm before)). The very same tuples
# are kept for capsules.
Step = tuple[Any, Sequence[Draw], Context, tuple[int, float, float]]


class Stretch:
    """Consecutive steps that have ended, their losses read, and the columns that more than one reader wants.

    Args:
        first: the number of the first step.
        steps: at least one. Losses on a GPU are waited for.
    """

    __slots__ = ("first", "ids", "loss", "n_samples", "steps")

    def __init__(self, first: int, steps: list[Step]) -> None:
        loss = [s[0] for s in steps]
        if set(map(type, loss)) != {float}:
            loss = read_all(loss)
            steps = [(value, *s[1:]) for value, s in zip(loss, steps, strict=True)]
        self.first, self.steps, self.loss = first, steps, loss
        # The ids of every step: an array, a list where 32 bits are too few, or None where they are not known.
        self.ids = [s[1][0][2] if len(s[1]) == 1 else _ids_of_all(s[1]) for s in steps]
        # -1 where not known
        self.n_samples = list(map(len, self.ids)) if self.all_arrays else [n_samples(s[1]) for s in steps]

    @property
    def all_arrays(self) -> bool:
        """Whether the ids of all steps are known, and fit into 32 bits."""
        return set(map(type, self.ids)) == {array}


def n_samples(draws: Sequence[Draw]) -> int:
    """The samples of a step, all micro-batches together; -1 when not known."""
    if len(draws) == 1:
        return draws[0][3]
    counts = [d[3] for d in draws]
    return sum(counts) if counts and min(counts) >= 0 else -1


def sample_ids(draws: Sequence[Draw]) -> Any:
    """The dataset indices of a step, all micro-batches together; None when not known."""
    if not draws or any(d[2] is None for d in draws):
        return None
    return draws[0][2] if len(draws) == 1 else _ids_of_all(draws)


def _ids_of_all(draws: Sequence[Draw]) -> Any:
    """As `sample_ids`, with none at all for a step without a batch."""
    parts = [d[2] for d in draws]
    if parts and all(type(p) is array for p in parts):
        joined = array(parts[0].typecode)
        for part in parts:
            joined.extend(part)
        return joined
    return None if any(p is None for p in parts) else [i for p in parts for i in p]
