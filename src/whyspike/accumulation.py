"""What a loop does with the micro-batches of one update, and what that makes of its loss.

Two things are read from replays, because no record says them. By what the gradients are divided in a window that the
end of an epoch cut short (the nominal number of micro-batches, or those that are there), and whether the mean of the
micro-losses is logged or their sum over that number: the convention whose replay comes out nearest. And whether the
mean of micro-batch means is the mean over all units (tokens, boxes) of the step, as it would be in one large batch:

    sum_i n_i L_i / sum_i n_i  -  mean_i L_i  =  Cov(n_i, L_i) / mean_i n_i            (exact; causes.md B4)

n_i are the units of micro-batch i and L_i its loss. The left side is 0 for every step only where the n_i are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from whyspike import batches, units
from whyspike.errors import WhySpikeError
from whyspike.seams import StepRule

SAMPLES = "samples"
CLOSES = 1e-4  # relative: a loss over units closes to float32 rounding, one over anything else misses by its spread
STEPS = 8  # at which the losses of all micro-batches are looked at
NEAR = 1e-6  # relative noise at which a replay counts as the record (as judge.NOISE)


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How the user's loop treats the micro-batches of a step."""

    nominal: int  # micro-batches of an ordinary step
    divides: str = "own"  # by the step's "own" number of micro-batches, by the "nominal" one, or by "none"
    logs: str = "mean"  # "mean" of the micro-losses, or "sum": their sum over what is divided by
    noise: float | None = None  # of the best convention, relative; None where none had to be chosen
    rival: float | None = None  # of the best one that divides otherwise

    def rule(self, n_micro: int) -> StepRule:
        """The rule of a step with so many micro-batches."""
        divisor = {"nominal": self.nominal, "none": 1}.get(self.divides, n_micro)
        return StepRule(accumulate=max(1, divisor), logs="sum" if self.logs == "sum" else "mean")

    @property
    def certain(self) -> bool:
        """Whether the replay tells by what is divided: one is the record, the other is not."""
        return self.noise is not None and self.noise <= NEAR and (self.rival or 0.0) > 10 * NEAR


def convention(nominal: int, noise_of: Callable[[Convention], float] | None) -> Convention:
    """The convention whose replay is nearest to the record.

    Args:
        noise_of: largest relative difference to the recorded losses of a replay over a cut window and the steps after
            it; None where no such window was recorded.
    """
    if noise_of is None:
        return Convention(nominal=nominal)
    kinds = [(d, g) for d in ("own", "nominal") for g in ("mean", "sum")]
    made = [Convention(nominal=nominal, divides=d, logs=g) for d, g in kinds]
    tried = [(noise_of(m), m) for m in made]
    best = min(tried, key=lambda t: t[0])
    others = [noise for noise, m in tried if m.divides != best[1].divides]
    return replace(best[1], noise=best[0], rival=min(others))


@dataclass(frozen=True, kw_only=True)
class Split:
    """One step's micro-batches: their units, their losses, and the loss of all of them at once."""

    step: int
    units: tuple[float, ...]
    losses: tuple[float, ...]
    whole: float

    @property
    def mean_of_means(self) -> float:
        return float(np.mean(self.losses))

    @property
    def weighted(self) -> float:
        """Mean over all units: sum n_i L_i / sum n_i."""
        return float(np.average(self.losses, weights=self.units))

    @property
    def covariance(self) -> float:
        """Cov(n_i, L_i) over the mean of n_i: what the mean of means misses."""
        n, loss = np.array(self.units), np.array(self.losses)
        return float(np.mean((n - n.mean()) * (loss - loss.mean())) / n.mean())


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """What gradient accumulation does in a run."""

    convention: Convention
    unit: str | None = None  # what the loss is a mean over: "samples", or a count of the batch; None: not known
    misfit: float | None = None  # largest relative difference of the loss of all at once to the mean over that unit
    splits: tuple[Split, ...] = ()
    counts: Mapping[int, tuple[float, ...]] = field(default_factory=dict)  # step → units in each of its micro-batches

    def at(self, step: int) -> Split | None:
        return next((s for s in self.splits if s.step == step), None)

    def share_of(self, factor: float, steps: Collection[int]) -> float:
        """Share, in logarithms, of a rise by a factor that the mean of means makes: the median over these steps.

        nan where none of them was split.
        """
        ratios = [s.mean_of_means / s.weighted for s in self.splits if s.step in steps and s.weighted > 0]
        known = [np.log(r) for r in ratios if r > 0]
        return float(np.median(known) / np.log(factor)) if known and factor > 0 and factor != 1 else math.nan

    @property
    def differs(self) -> bool:
        """Whether the mean of micro-batch means is not the mean over all units, at some step."""
        return any(abs(s.mean_of_means - s.weighted) > CLOSES * abs(s.weighted) for s in self.splits)


Piece = tuple[int, tuple[Any, ...], Any]  # a step, its micro-batches, and all of their samples as one batch


def whole_loss(
    pieces: Sequence[Piece], loss_of: Callable[[Any, int], float]
) -> tuple[str | None, float | None, tuple[Split, ...]]:
    """Over which unit the loss is a mean, how exactly, and the splits of every step.

    Args:
        loss_of: the loss of a batch on the network as it was before that step.

    Every count that all micro-batches offer is a candidate, and the number of samples; the one under which the loss of
    all samples at once is the weighted mean of the micro-losses is taken, the samples first.
    """
    rows = []
    for step, micro, whole in pieces:
        counts = [{SAMPLES: float(batches.size(b)), **units.candidates(b, batches.size(b))} for b in micro]
        names = set.intersection(*(set(c) for c in counts))
        losses = tuple(loss_of(b, step) for b in micro)
        rows.append((step, counts, names, losses, loss_of(whole, step)))
    if not rows:
        return None, None, ()
    shared = set.intersection(*(names for _, _, names, _, _ in rows))
    best: tuple[str, float, tuple[Split, ...]] | None = None
    order = {name: k for k, name in enumerate(rows[0][1][0])}
    # Samples first; then what loss functions mask by, and the later columns: labels come after inputs.
    for name in sorted(shared, key=lambda n: (n != SAMPLES, "-100" not in n, -order[n])):
        splits = tuple(
            Split(step=step, units=tuple(c[name] for c in counts), losses=losses, whole=all_)
            for step, counts, _, losses, all_ in rows
        )
        if not all(sum(s.units) > 0 and np.isfinite([*s.losses, s.whole]).all() for s in splits):
            continue
        misfit = max(abs(s.whole - s.weighted) / max(abs(s.whole), 1e-12) for s in splits)
        if best is None or (misfit < best[1] and best[1] > CLOSES):
            best = (name, misfit, splits)
    if best is None or best[1] > CLOSES:
        return None, None if best is None else best[1], ()
    return best


def joined(micro: Sequence[Any], again: Callable[[], Any | None]) -> Any | None:
    """The samples of all micro-batches as one batch: joined, or drawn again where they are padded differently."""
    try:
        return batches.concat(micro)
    except WhySpikeError:
        return again()


def cut_windows(steps: Sequence[Any], nominal: int) -> Iterator[int]:
    """The steps of a capsule whose window was cut short, where another step follows."""
    for k, record in enumerate(steps[:-1]):
        if record.batches and 0 < len(record.batches) < nominal and steps[k + 1].batches:
            yield record.step


def units_of(batch: Any, name: str) -> float:
    """The count of that name in a batch."""
    n = batches.size(batch)
    return float(n) if name == SAMPLES else units.candidates(batch, n).get(name, float(n))
