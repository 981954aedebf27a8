"""Which worker process of the loader made a batch, and whether the loss follows it.

A torch DataLoader hands batches out in turn: in every pass, batch k comes from worker k mod num_workers, as long as
`in_order` is set (the default). What is wrong with one worker comes back every num_workers batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.types import Run

ALPHA = 0.01  # as for any named period (periods.ALPHA)
MIN_AMPLITUDE = 0.1  # nats, as for any named period (periods.MIN_AMPLITUDE)
MIN_CYCLES = 8  # rounds of all workers; below it a rotation test of two or three workers has no power
N_NULL = 999


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The loss by worker."""

    n: int
    of_row: np.ndarray  # int64 [T], the worker that made the batch of each row
    levels: np.ndarray  # float64 [n], nats: mean log loss of a worker less that of the other ones in the same round
    p_value: float  # that one worker stands out so far from the others by chance

    @property
    def odd(self) -> int:
        """The worker that stands out most."""
        return int(np.argmax(np.abs(self.levels)))

    @property
    def stands_out(self) -> bool:
        return self.p_value <= ALPHA and abs(self.levels[self.odd]) >= MIN_AMPLITUDE


def workers(run: Run, *, seed: int = 0) -> Workers | None:
    """Compare the workers of a run's loader.

    The null rotates the rounds of each epoch on their own, or those of each place in the epoch: their losses stay, and
    what they have to do with a worker's number goes. The larger p of the two counts, because a pattern that repeats in
    every epoch (a fixed order) makes the epochs alike, and a lasting trend the places.

    Returns:
        None with fewer than two workers, with several batches per step, or with too few rounds to tell.
    """
    n, accumulate = run.facts.get("num_workers"), run.facts.get("accumulate")
    if not isinstance(n, int) or n < 2 or run.index is None or run.epoch is None:
        return None
    if isinstance(accumulate, int) and accumulate > 1:
        return None  # a step has batches of several workers
    rounds, epochs, places = _rounds(run, n)
    if len(rounds) < MIN_CYCLES:
        return None
    rng = np.random.default_rng(seed)
    p = max(_rotation_p(rounds, groups, rng) for groups in (epochs, places))
    return Workers(n=n, of_row=run.index % n, levels=_levels(rounds), p_value=p)


def _rotation_p(rounds: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> float:
    """How often one worker stands out as far when the rounds of each group are rotated together, at random."""
    n, line = rounds.shape[1], np.abs(_levels(rounds)).max() - 1e-12
    kinds, which = np.unique(groups, return_inverse=True)
    above = 0
    for _ in range(N_NULL):
        turn = rng.integers(0, n, len(kinds))[which]
        turned = np.take_along_axis(rounds, (np.arange(n) + turn[:, None]) % n, axis=1)
        above += int(np.abs(_levels(turned)).max() >= line)
    return (1 + above) / (N_NULL + 1)


def _rounds(run: Run, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log losses in rounds of n batches, worker 0 first, float64 [rounds, n]; the epochs and places of the rounds."""
    assert run.index is not None
    assert run.epoch is not None
    starts = np.flatnonzero(run.index % n == 0)
    starts = starts[starts + n <= len(run)]
    rows = starts[:, None] + np.arange(n)
    whole = (run.epoch[rows] == run.epoch[starts][:, None]).all(axis=1)
    usable = whole & np.isfinite(run.loss[rows]).all(axis=1) & (run.loss[rows] > 0).all(axis=1)
    rows = rows[usable]
    return np.log(run.loss[rows]), run.epoch[starts[usable]], run.index[starts[usable]]


def _levels(rounds: np.ndarray) -> np.ndarray:
    """Of each worker: its mean log loss less the mean of the others."""
    n = rounds.shape[1]
    means = rounds.mean(axis=0)
    return (means - means.mean()) * n / (n - 1)
