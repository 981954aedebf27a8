"""Scale x weights x data: which of the three made a logged loss so large.

Let c(theta, b) be the user's loss on batch b tiled to the nominal batch size, so that a fault in the normaliser is
not in it. With theta_ref before the event and L_typ the mean of c(theta_ref, .) over random batches of as many
samples as the event's,

    L_reported / L_typ  =  scale * weights * data
    scale   = L_reported / c(theta_t, b_t)            the number: reduction, denominator
    weights = c(theta_t, b_t) / c(theta_ref, b_t)     the network was damaged before
    data    = c(theta_ref, b_t) / L_typ               this batch is hard for a healthy network

The product telescopes, so it closes whatever the losses are. Losses with cross-sample terms (contrastive) are not
meant for this: the exponent probe recognises them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from whyspike import batches
from whyspike.errors import NotReplayable
from whyspike.frozen import frozen, loss_value
from whyspike.seams import LossFn
from whyspike.types import Attribution

REPEATS = 8  # evaluations averaged when the loss draws random numbers
LEVELS = (2.5, 97.5)  # percentiles of the 95 % intervals


def attribute(
    model: nn.Module,
    loss_fn: LossFn,
    *,
    event_batch: Any,
    reported: float,
    reference_batches: Callable[[np.random.Generator, int], Any],
    batch_size: int,
    restore_reference: Callable[[], None],
    restore_event: Callable[[], None],
    n: int | None = None,
    train_mode: bool | None = None,
    n_draws: int = 64,
    n_boot: int = 200,
    seed: int = 0,
) -> Attribution:
    """Split a logged loss into its three factors, with 95 % intervals.

    The intervals are those of what is random in each factor. `scale` and `weights` compare two numbers of the same
    batch: its rows are resampled (paired). `data` asks whether the batch is unusual: the reference draws are of its
    own size, so their spread about their mean is its sampling noise, whatever the size; they are resampled, and the
    interval covers 1 exactly when 95 % of random batches reach as far as this one.

    Args:
        event_batch: the batch of the event's step.
        reported: its loss as logged.
        reference_batches: `draw(rng, n)` gives a batch of n random training samples.
        batch_size: the nominal number of samples, B.
        restore_reference: brings the model to its weights before the event.
        restore_event: brings the model to the weights at which the event's loss was computed. It is called last, and
            the model is left there.
        n: samples in the event's batch; counted when not given.
        train_mode: None evaluates in the modes that the two callables leave the modules in. These should be those of
            the training: dropout and batch statistics make the logged loss differ from that of eval mode, and the
            difference would be taken for scale. Tiling changes no batch statistics.
        n_draws: random batches behind L_typ; at least 64 for a mean that the tail of the losses does not decide.
        n_boot: bootstrap draws. Every distinct draw of rows costs three evaluations, so that a batch of 32 costs
            about 3 n_boot + n_draws forward passes of B samples.

    Raises:
        BadTraining: `loss_fn` raised or did not return a scalar.
        NotReplayable: a loss is not finite or not positive; the factors are ratios.
    """
    size = batches.size(event_batch) if n is None else n
    rng = np.random.default_rng(seed)
    picks = [tuple(sorted(int(i) for i in rng.integers(size, size=size))) for _ in range(n_boot)]
    _check("the reported loss", reported)

    def canonical(batch: Any, count: int) -> float:
        return _canonical(model, loss_fn, batch, count, batch_size)

    restore_reference()
    with frozen(model, train_mode=train_mode, seed=seed):
        typical = np.array([canonical(reference_batches(rng, size), size) for _ in range(n_draws)])
        c_ref, boot_ref = _resampled(canonical, event_batch, size, picks)
    restore_event()
    with frozen(model, train_mode=train_mode, seed=seed):
        c_event, boot_event = _resampled(canonical, event_batch, size, picks)
        plain, boot_plain = _resampled(lambda b, _: loss_value(model, loss_fn, b), event_batch, size, picks)
    for words, value in (
        ("the mean loss of random batches before the event", float(typical.mean())),
        ("the loss of the event's batch before the event", c_ref),
        ("the loss of the event's batch at the event", c_event),
    ):
        _check(words, value)

    l_typ = float(typical.mean())
    scale, weights, data = reported / c_event, c_event / c_ref, c_ref / l_typ
    resampled = rng.integers(n_draws, size=(n_boot, n_draws))
    noise = typical[rng.integers(n_draws, size=n_boot)] / typical[resampled].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # What the step logged belongs to these rows; on other rows it would have been larger by boot_plain / plain.
        scales = scale * (boot_plain / plain) * (c_event / boot_event)
        return Attribution(
            scale=scale,
            weights=weights,
            data=data,
            interval={
                "scale": _interval(scales, scale),
                "weights": _interval(boot_event / boot_ref, weights),
                # Subtracted, not divided: a draw of one well-fitted sample would give an upper end of any size.
                "data": _interval(np.maximum(data - (noise - 1), 0), data),
            },
        )


def canonical_loss(model: nn.Module, loss_fn: LossFn, batch: Any, batch_size: int, *, n: int | None = None) -> float:
    """c(theta, b): the user's loss on a batch tiled to the nominal batch size, in eval mode.

    Where n does not divide the batch size, the losses of the two nearest whole numbers of copies are interpolated
    on a log-log scale, which is exact for any power of the batch size.

    Args:
        batch_size: the nominal number of samples, B.
        n: samples in the batch; counted when not given.
    """
    with frozen(model, seed=0):
        return _canonical(model, loss_fn, batch, batches.size(batch) if n is None else n, batch_size)


def per_sample(model: nn.Module, loss_fn: LossFn, batch: Any, n: int, *, train_mode: bool | None = False) -> np.ndarray:
    """The loss of every sample alone: element i is c(theta, {i}), sample i repeated n times as one batch.

    With n the nominal batch size, a mean of them is what a step would log for these samples, whatever power of the
    batch size is in the loss: exactly for a mean, a sum or a double average, and up to the ratio's own bias for a
    loss divided by a count.

    Args:
        n: copies of each sample, the nominal batch size.
        train_mode: as `frozen`. Batch statistics of n equal rows have no spread, so eval mode is the default; a net
            with dropout and without batch normalisation is better seen in train mode, as it was logged.

    Returns:
        float64 [samples], at the present weights.
    """
    size = batches.size(batch)
    known = getattr(loss_fn, "per_sample", None)  # of a script's tape
    with frozen(model, train_mode=train_mode, seed=0):
        if known is not None and (found := known(model, batch, n)) is not None:
            return found
        return np.array([loss_value(model, loss_fn, batches.take(batch, [row] * n, size)) for row in range(size)])


def _canonical(model: nn.Module, loss_fn: LossFn, batch: Any, n: int, batch_size: int) -> float:
    copies = batch_size / n
    low = max(1, math.floor(copies))
    rows = list(range(n))
    at_low = loss_value(model, loss_fn, batches.take(batch, rows * low, n))
    if low == copies:
        return at_low
    at_high = loss_value(model, loss_fn, batches.take(batch, rows * (low + 1), n))
    if at_low == at_high or at_low <= 0 or at_high <= 0:
        return at_low
    # Also for a batch larger than the nominal one: the law is carried on below one copy.
    share = math.log(copies / low) / math.log((low + 1) / low)
    return math.exp((1 - share) * math.log(at_low) + share * math.log(at_high))


def _resampled(
    evaluate: Callable[[Any, int], float], batch: Any, n: int, picks: Sequence[tuple[int, ...]]
) -> tuple[float, np.ndarray]:
    """The value of the batch itself, and of every resampling of its rows; equal resamplings are evaluated once.

    A loss that draws random numbers is averaged for the batch itself, and never taken from the cache, so that its
    own noise is in the intervals.
    """
    rows = tuple(range(n))
    first, again = (evaluate(batches.take(batch, list(rows), n), n) for _ in range(2))
    random = first != again and not (math.isnan(first) and math.isnan(again))
    known = {rows: first}
    out = []
    for pick in picks:
        if random or pick not in known:
            known[pick] = evaluate(batches.take(batch, list(pick), n), n)
        out.append(known[pick])
    if not random:
        return first, np.array(out)
    more = [evaluate(batches.take(batch, list(rows), n), n) for _ in range(REPEATS - 2)]
    return float(np.mean([first, again, *more])), np.array(out)


def _interval(draws: np.ndarray, centre: float) -> tuple[float, float]:
    kept = draws[np.isfinite(draws) & (draws >= 0)]
    if len(kept) == 0:
        return centre, centre
    low, high = np.percentile(kept, LEVELS)
    return min(float(low), centre), max(float(high), centre)


def _check(words: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise NotReplayable(
            f"{words} is {value:.6g}; splitting a spike into scale, weights and data needs positive finite losses: "
            "give watch() a loss_fn without the terms that make it negative or zero"
        )
