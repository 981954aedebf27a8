"""How often a spike or dip that repeats is seen where nothing repeats: `python benchmarks/periodic_null.py`.

Healthy trainings of the scoreboard's suite, at seeds of its own, are tested with periods that they do not have: lengths
that are no multiple and no part of their epoch. What is found is chance. Prints the share of tests whose p is below a
line and whose pattern is high enough and a habit, as `periods.periodic_events` asks. periods.SPIKE_ALPHA comes from it.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from _healthy import setup, training
from _kept import kept

from whyspike.folding import as_own
from whyspike.periods import ALPHA, SPIKE_ALPHA, named_period
from whyspike.repeats import merge
from whyspike.rerun import train
from whyspike.stats import wilson
from whyspike.types import Run

SEED = 515_151  # the scoreboard's come from commits
LINES = (ALPHA, SPIKE_ALPHA)
LEAST = 10  # steps of a period


def tests_of(number: int, each: int) -> list[list[float]]:
    """[p, whether the pattern is an event at p = 1] of so many periods that one training does not have."""
    made = train(lambda seed: training(setup(number, SEED)), seed=0)
    steps = len(made.loss)
    short = np.flatnonzero(made.n_samples < made.n_samples[0])
    epoch = int(short[0]) + 1 if len(short) else 1
    rng = np.random.default_rng([SEED, number])
    found: list[list[float]] = []
    while len(found) < each:
        period = int(np.exp(rng.uniform(np.log(LEAST), np.log(steps // 4))))
        if epoch > 1 and (period % epoch == 0 or epoch % period == 0):
            continue
        run = Run(
            source="healthy",
            reader="benchmark",
            step=np.arange(steps),
            loss=made.loss,
            n_samples=made.n_samples,
            batch_size=int(made.n_samples.max()),
            steps_per_epoch=period,
        )
        result = named_period(run, period, seed=len(found))
        pattern = None
        if result.spikes is not None and result.shape == "spike":
            pattern = merge(as_own(run, period, of_epoch=False), [], result.spikes)
        found.append([result.p_value, float(pattern is not None)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainings", type=int, default=60)
    parser.add_argument("--each", type=int, default=30, help="periods for each of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    made = []
    for k in range(asked.trainings):
        made += kept("periodic_null", f"training {k}, {asked.each} periods", lambda: tests_of(k, asked.each))  # noqa: B023
        print(f"{k + 1} trainings", end="\r", file=sys.stderr, flush=True)
    p, event = np.array(made).T
    for line in LINES:
        below, events = int((p <= line).sum()), int(((p <= line) & (event > 0)).sum())
        low, high = wilson(events, len(p))
        share = f"{events / len(p):.2%}; 95 %: {low:.2%} to {high:.2%}"
        print(f"p <= {line:g}: {below} of {len(p)} tests, {events} of them an event ({share})")


if __name__ == "__main__":
    main()
