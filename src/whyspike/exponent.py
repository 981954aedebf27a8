"""The batch-size exponent of a loss: does it average, sum, or average twice?

The same rows are evaluated once, twice and four times over. Duplicates carry no sampling noise, and two unknowns
separate a power of the batch size from the logarithm of a contrastive loss:

    L(n) = n**alpha * (L1 + gamma * log n)        n = 1, 2, 4 copies

With x = 2**alpha this is L1 x**2 - 2 L2 x + L4 = 0. Of its two roots the one nearest to 1/2, 1 or 2 is taken.
alpha = 0: a mean. +1: a sum. -1: averaged twice. gamma = 1 with alpha = 0: InfoNCE.
Calibrated in `benchmarks/exponent.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from whyspike import batches, units
from whyspike.errors import WhySpikeError
from whyspike.frozen import call_loss, frozen
from whyspike.seams import LossFn
from whyspike.types import Exponent

PERMUTATIONS = 4
REPEATS = 8  # evaluations averaged when the loss draws random numbers even in eval mode (VAE, diffusion)
ROWS_LOOKED_AT = 256  # rows whose units are counted to choose the probe rows

# Relative discriminants below this are rounding: float32 losses are good to about 1e-6, and a true gamma hidden by
# it would move alpha by less than .005 (gamma log 2 / L2 = sqrt(1e-5)).
ROUNDING = 1e-5

# Above this std / |mean| over row permutations a loss depends on the order of its rows: float32 rounding gives 1e-7,
# means of micro-batch means 3e-3 to 6e-2 (benchmarks/exponent.py).
ORDER_MATTERS = 1e-4

# Largest misfit of a one-parameter power law, in doublings, that is still reported: the |alpha error| < .25 that the
# benchmark counts as right.
MISFIT = 0.25


class ExponentUndefined(WhySpikeError):
    """The losses of 1, 2 and 4 copies do not determine an exponent; the message says why."""


def measure(
    model: nn.Module, loss_fn: LossFn, batch: Any, *, n: int | None = None, train_mode: bool = False
) -> Exponent:
    """Measure the exponent on one batch, without training.

    Args:
        model: the network; it is left as it was, random generators included.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss.
        batch: a batch whose rows can be taken (`whyspike.batches`); no more rows than it has are ever evaluated at
            once (four rows where it has fewer).
        n: samples in the batch; counted when not given.
        train_mode: for models that give no loss in eval mode. Batch statistics are the same on duplicates; dropout
            costs precision (8 evaluations are averaged).

    Raises:
        BadTraining: `loss_fn` raised or did not return a scalar.
        ExponentUndefined: the losses are zero, not finite, of both signs, or follow no power of the batch size.
    """
    size = batches.size(batch) if n is None else n
    return _measure(model, loss_fn, size, lambda rows: batches.take(batch, list(rows), size), train_mode)


def measure_from_dataset(
    model: nn.Module,
    loss_fn: LossFn,
    dataset: Any,
    collate_fn: Callable[[list[Any]], Any],
    ids: Sequence[int],
    *,
    train_mode: bool = False,
) -> Exponent:
    """As `measure`, on the samples `ids` of a dataset, put together by the loader's own `collate_fn`.

    The way for ragged batches: concatenated CTC targets, lists of boxes, graphs. Every sample is read once, so that
    a random augmentation is the same in all copies.

    Raises:
        BadTraining, ExponentUndefined: as `measure`.
    """
    with frozen(model):  # reading a sample may draw random numbers
        items = [dataset[int(i)] for i in ids]
    return _measure(model, loss_fn, len(items), lambda rows: collate_fn([items[r] for r in rows]), train_mode)


def _measure(
    model: nn.Module, loss_fn: LossFn, n: int, build: Callable[[Sequence[int]], Any], train_mode: bool
) -> Exponent:
    if n < 1:
        raise ExponentUndefined("the batch is empty; the exponent needs at least one sample")
    with frozen(model, train_mode=train_mode, seed=0):
        rows = _probe_rows(n, build)
        rounding = ROUNDING

        def loss(of: Sequence[int]) -> float:
            nonlocal rounding
            value = call_loss(model, loss_fn, build(of)).detach()
            if value.is_floating_point():
                rounding = max(rounding, 8 * torch.finfo(value.dtype).eps)
            return float(value)

        first, again = loss(rows), loss(rows)
        repeats = 1 if first == again or not math.isfinite(first) else REPEATS
        values = [[loss(rows * copies) for _ in range(repeats)] for copies in (1, 2, 4)]
        permutation = _permutation(n, loss, repeats)
    losses = tuple(float(np.mean(v)) for v in values)
    noise = max(float(np.std(v)) / abs(m) if m else 0.0 for v, m in zip(values, losses, strict=True))
    # The relative error of L2**2 - L1 L4 from independent errors s of the three losses is sqrt(6) s; 6 s is its 2.5
    # sigma. A quarter of the batch feels the order of rows twice as much as the whole.
    tolerance = max(rounding, 6 * noise / math.sqrt(repeats), 12 * permutation)
    exact = repeats == 1 and permutation < ORDER_MATTERS
    alpha, gamma = solve(*losses, tolerance=tolerance, exact=exact)  # type: ignore[call-arg]
    return Exponent(alpha=alpha, gamma=gamma, permutation=permutation, losses=losses)  # type: ignore[arg-type]


def solve(l1: float, l2: float, l4: float, *, tolerance: float = ROUNDING, exact: bool = True) -> tuple[float, float]:
    """(alpha, gamma) from the losses of 1, 2 and 4 copies.

    Args:
        tolerance: relative discriminant below which the law is a plain power and gamma is 0.
        exact: the losses are right to rounding: they draw no random numbers and do not depend on the order of rows.

    Losses of one negative sign are treated like positive ones. Where the two-parameter law has no real root, and the
    losses are exact, a constant that no copy changes (a weight penalty inside the loss) is allowed for instead:
    L(n) = a n**alpha + c gives 2**alpha = (L4 - L2) / (L2 - L1), and gamma is 0. Where they are not exact, those
    differences may be nothing but noise, and the plain power is taken.

    Raises:
        ExponentUndefined: no such law fits.
    """
    seen = f"the losses of 1, 2 and 4 copies of the same samples are {l1:.6g}, {l2:.6g} and {l4:.6g}"
    if not all(map(math.isfinite, (l1, l2, l4))):
        raise ExponentUndefined(f"{seen}; the exponent needs finite losses: measure it before they overflow")
    if not (min(l1, l2, l4) > 0 or max(l1, l2, l4) < 0):
        raise ExponentUndefined(
            f"{seen}; the exponent needs losses of one sign and other than zero: give it a batch that the model does "
            "not yet fit, or leave out the part of the loss that makes it negative"
        )
    discriminant = l2 * l2 - l1 * l4
    if abs(discriminant) <= tolerance * l2 * l2 or (discriminant < 0 and not exact):
        alpha = math.log2(l4 / l1) / 2  # the least-squares slope over 1, 2 and 4 copies
        misfit = abs(math.log2(l2 / l1) - alpha)
        if misfit > MISFIT:
            raise ExponentUndefined(f"{seen}; they follow no power of the batch size (misfit {misfit:.2f} doublings)")
        return alpha, 0.0
    if discriminant > 0:
        spread = math.sqrt(discriminant)
        # Vieta gives the second root without cancellation: x1 x2 = L4 / L1.
        large = (l2 + math.copysign(spread, l2)) / l1
        roots = [l4 / l1 / large, large]
        alpha = math.log2(min((x for x in roots if x > 0), key=_distance))
        return alpha, (l2 / 2**alpha - l1) / math.log(2)
    x = (l4 - l2) / (l2 - l1) if l2 != l1 else math.nan
    if not (x > 0 and _distance(x) <= 0.5 + MISFIT):
        raise ExponentUndefined(f"{seen}; they follow no power of the batch size")
    return math.log2(x), 0.0


def _distance(x: float) -> float:
    # Rounded, so that a tie goes to the first root, the smaller one: its gamma is positive, as that of every
    # contrastive loss. (InfoNCE of 4 rows at its start, log 4, has the exact roots 1 and 2.)
    return round(min(abs(math.log2(x) - k) for k in (-1, 0, 1)), 1)


def _probe_rows(n: int, build: Callable[[Sequence[int]], Any]) -> list[int]:
    """A quarter of the rows: those with the most units in them.

    A divisor such as max(1, boxes) does not divide where there is none, so that rows without any would look like a
    sum. Duplicates need no representative rows.
    """
    quarter = max(1, n // 4)
    looked = range(min(n, ROWS_LOOKED_AT))
    counts = [units.candidates(build([row]), 1) for row in looked]
    names = sorted(set.intersection(*(set(c) for c in counts))) if counts else []
    table = np.array([[c[name] for name in names] for c in counts], dtype=float).reshape(len(counts), len(names))
    varying = table[:, table.std(axis=0) > 0]
    rank = (varying / varying.max(axis=0)).sum(axis=1) if varying.size else np.zeros(len(counts))
    chosen = [int(row) for row in np.argsort(-rank, kind="stable")[:quarter]]
    return (chosen + [row for row in range(n) if row not in set(chosen)])[:quarter]


def _permutation(n: int, loss: Callable[[Sequence[int]], float], repeats: int) -> float:
    """Std over |mean| of the loss over row permutations, less three times what it varies by itself."""
    rng = np.random.default_rng(0)
    rows = list(range(n))
    kept = [loss(rows) for _ in range(repeats if repeats > 1 else 0)]
    moved = [loss(rows)] + [loss([int(r) for r in rng.permutation(n)]) for _ in range(PERMUTATIONS)]
    mean = float(np.mean(moved))
    if mean == 0 or not math.isfinite(mean):
        return 0.0
    spread = float(np.std(moved)) - (3 * float(np.std(kept)) if kept else 0.0)
    return max(0.0, spread) / abs(mean)
