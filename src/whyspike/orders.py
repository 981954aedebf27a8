"""The orders in which an experiment lets an epoch draw its samples, one seam, one class each.

What they differ in is the gap: how long ago, in epochs, a sample was last trained on when it comes up again. At phase
p of an epoch (0 at its begin, 1 at its end) it is p + U(0, 1) for a fresh shuffle (mean 1/2 + p), 1 for the order of
the epoch before, 2 p for its reverse, and about 1 for blocks that keep their place (causes.md A1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whyspike.seams import EpochContext, Intervention


def cut(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """An order of samples as batches of the sizes that the loader had drawn; what is left over is left out."""
    ends = np.cumsum([len(b) for b in like])
    return [b for b in np.split(flat[: int(ends[-1])] if len(ends) else flat, ends[:-1]) if len(b)]


class Order(Intervention):
    """An order of single samples, put into batches of the sizes that the loader had drawn."""

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if not ids:
            return ids
        return cut(self.arrange(at, np.concatenate(ids)), ids)

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        """The epoch's samples in another order, int64 [N]; `drawn` is what the loader gave."""
        return drawn


class _AfterTheLast(Order):
    """An order made from that of the epoch before; the first epoch keeps its own."""

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        return self.follow(at, at.previous[-1]) if at.previous else drawn

    def follow(self, at: EpochContext, last: np.ndarray) -> np.ndarray:
        """The order that follows `last`."""
        raise NotImplementedError


class Reshuffle(Order):
    """Another shuffle without replacement: what a loader with shuffle=True does at every epoch, and so a placebo."""

    words = "another shuffle of the same kind"

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        return at.rng.permutation(drawn)


class Turned(Order):
    """The drawn order, begun half way."""

    def __init__(self, words: str = "the same order, begun half way") -> None:
        self.words = words

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        return np.roll(drawn, -(len(drawn) // 2))


class InsideBatches(Intervention):
    """Every batch with its own samples in another order: a placebo, for losses that are means over the batch."""

    words = "the samples shuffled inside each batch"

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [at.rng.permutation(batch) for batch in ids]


class ThroughBuffer(Order):
    """The samples by their ids, through a shuffle buffer: it hands out a random sample of those it holds."""

    def __init__(self, buffer: int) -> None:
        self.buffer = max(1, buffer)
        self.words = f"the file through another draw of a buffer of {self.buffer} samples"

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        source = np.sort(drawn)
        held, rest = source[: self.buffer].copy(), source[self.buffer :]
        places = at.rng.integers(len(held), size=len(rest)) if len(held) else []
        out = []
        for place, coming in zip(places, rest, strict=True):
            out.append(held[place])
            held[place] = coming
        return np.concatenate([np.array(out, dtype=np.int64), at.rng.permutation(held)])


class WithReplacement(Order):
    """Every sample drawn from all of them. The gap has forgotten the phase once a whole epoch was drawn like this."""

    words = "samples drawn with replacement"
    epochs = 2

    def arrange(self, at: EpochContext, drawn: np.ndarray) -> np.ndarray:
        return at.rng.choice(np.unique(drawn), len(drawn))


class FixedOrder(_AfterTheLast):
    """The order of the epoch before, once more: every gap is one epoch."""

    words = "the last epoch's order again"

    def follow(self, at: EpochContext, last: np.ndarray) -> np.ndarray:
        return last


class BlockReshuffle(_AfterTheLast):
    """The order of the epoch before in blocks that keep their place, shuffled inside: gaps of 1 ± 1 / blocks.

    It is as random as a shuffle for the batches of one step, and without replacement. Only the gap has lost its phase,
    and after a second epoch like this also the gap before it: the network remembers more than the last visit. With one
    epoch 13 % of the sawtooth is left, with two 4 %, with three 2 % (cases/gru_recommender.py, mean of five runs).
    """

    epochs = 2

    def __init__(self, blocks: int = 10) -> None:
        self.blocks = blocks
        self.words = f"the last epoch's order for two epochs, shuffled only inside {blocks} blocks"

    def follow(self, at: EpochContext, last: np.ndarray) -> np.ndarray:
        return np.concatenate([at.rng.permutation(block) for block in np.array_split(last, self.blocks)])


class ReversedOrder(_AfterTheLast):
    """The order of the epoch before backwards: the gap grows from 0 to 2 epochs."""

    words = "the last epoch's order reversed"

    def follow(self, at: EpochContext, last: np.ndarray) -> np.ndarray:
        return last[::-1]


class QuartersSwapped(_AfterTheLast):
    """Quarters 1 2 3 4 of the epoch before in the order 2 1 4 3, shuffled inside: gaps of 3/4, 5/4, 3/4, 5/4."""

    words = "the last epoch's quarters swapped, 2 1 4 3"

    def follow(self, at: EpochContext, last: np.ndarray) -> np.ndarray:
        quarters = [at.rng.permutation(q) for q in np.array_split(last, 4)]
        return np.concatenate([quarters[k] for k in (1, 0, 3, 2)])


class Divisible(Intervention):
    """The batches of an epoch that are smaller than the others left out, as with drop_last=True."""

    words = "the small last batch left out"

    def order(self, at: EpochContext, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [b for b in ids if len(b) >= at.batch_size]
