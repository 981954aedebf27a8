"""Observations made by hand, for the tests of causes: an epoch of 33 steps whose last batch is small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whyspike.cause import Observation, Units
from whyspike.types import Event, Exponent, Run

STEPS_PER_EPOCH, BATCH, LAST = 33, 32, 2


def last_batch_run(
    *,
    factor: float = 1.0,
    last: int = LAST,
    epochs: int = 12,
    alpha: float | None = None,
    state: float | None = None,
    units: Units | None = None,
    momentum: float | None = 0.9,
) -> Observation:
    """A flat noisy loss whose last batch of every epoch is `factor` times as high, as one periodic event.

    Args:
        last: samples of the last batch; the others have 32.
        alpha: measured exponent of the loss in the batch size; None: not measured.
        state: height of the probe loss at the event.
    """
    steps = STEPS_PER_EPOCH * epochs
    rng = np.random.default_rng(0)
    index = np.arange(steps) % STEPS_PER_EPOCH
    end = index == STEPS_PER_EPOCH - 1
    loss = np.exp(0.05 * rng.standard_normal(steps)) * np.where(end, factor, 1.0)
    run = Run(
        source="made by hand",
        reader="test",
        step=np.arange(steps),
        loss=loss,
        epoch=np.arange(steps) // STEPS_PER_EPOCH,
        index=index,
        n_samples=np.where(end, last, BATCH),
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=BATCH,
        facts={"optimizer": {"name": "SGD", "defaults": {"momentum": momentum or 0.0}}},
    )
    event = Event(
        id="e1",
        kind="periodic",
        step=STEPS_PER_EPOCH - 1,
        last_step=steps - 1,
        period=STEPS_PER_EPOCH,
        reported=factor,
        state=state,
    )
    exponent = None if alpha is None else Exponent(alpha=alpha, gamma=0.0, permutation=0.0, losses=(1.0, 1.0, 1.0))
    return Observation(run=run, events=(event,), exponent=exponent, units=units)


def units_of(slope: float, counts: dict[int, float] | None = None, half_width: float = 0.1) -> Units:
    """Counts with a median of 20 that the loss follows with this slope."""
    return Units(
        name="positives of batch[1]",
        slope=slope,
        interval=(slope - half_width, slope + half_width),
        correlation=-0.9,
        by_step=counts if counts is not None else {STEPS_PER_EPOCH - 1: 2.0},
        typical=20.0,
    )


def with_spikes(seen: Observation, *spikes: tuple[int, float, float | None, float | None]) -> Observation:
    """The observation with single spikes for events: step, reported, state, and p of the batch-mean null."""
    events = tuple(
        Event(id=f"e{k}", kind="spike", step=step, last_step=step, reported=reported, state=state)
        for k, (step, reported, state, _) in enumerate(spikes, 1)
    )
    null = {f"e{k}": p for k, (*_, p) in enumerate(spikes, 1) if p is not None}
    return replace(seen, events=events, batch_null=null)
