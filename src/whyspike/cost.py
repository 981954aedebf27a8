"""What an experiment will cost, said before it starts."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from whyspike.experiment import PAIRS
from whyspike.frozen import call_loss, frozen
from whyspike.replay import HORIZON
from whyspike.training import Training

STEPS = 3  # timed, after one that is not
ARMS = 8  # arms of about as many causes, in whole replays of all pairs
TRAININGS = 15  # for the cures: four of them and the uncured, three seeds each


def seconds_per_step(training: Training) -> float | None:
    """Time forward and backward on the first batch. Nothing of the training changes; None when no batch can be had."""
    model = training.model
    with frozen(model, train_mode=None):
        batch = next(iter(training.loader), None)
    if batch is None:
        return None
    times = []
    for _ in range(STEPS + 1):
        start = perf_counter()
        loss = call_loss(model, training.loss_fn, batch)
        if not hasattr(loss, "backward"):
            return None
        loss.backward()
        times.append(perf_counter() - start)
    model.zero_grad(set_to_none=True)
    return min(times[1:])


def estimate(training: Training, *, cures: bool) -> str | None:
    """One sentence: how long the training, the replays and the cures will take. None when it cannot be told.

    Args:
        training: one that is thrown away afterwards: its loader and generators move on.
        cures: whether cures are trained from scratch, too.
    """
    per_step = seconds_per_step(training)
    length: Callable[[], int] | None = getattr(training.loader, "__len__", None)
    if per_step is None or length is None:
        return None
    try:
        steps = training.epochs * length()
    except TypeError:  # a DataLoader over an iterable has __len__, and raises
        return None
    train = steps * per_step
    replay = PAIRS * ARMS * (HORIZON + 5) * per_step * 2  # a probe after every step costs about another step
    parts = [f"the training about {spell(train)}", f"the replays up to {spell(replay)}"]
    if cures:
        parts.append(f"cures from scratch up to {spell(TRAININGS * train)}")
    return f"expected: {', '.join(parts)}"


def spell(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
