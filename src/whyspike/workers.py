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
    split_p: float = (
        0.0  # that a random split of the samples makes one stand out so far; 0 where samples change workers
    )

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
    of_row = run.index % n
    split = _split_p(rounds, epochs) if _keeps_samples(run, of_row, n) else 0.0
    return Workers(n=n, of_row=of_row, levels=_levels(rounds), p_value=p, split_p=split)


def _keeps_samples(run: Run, of_row: np.ndarray, n: int) -> bool:
    """Whether a worker reads the same samples in every epoch; taken to be so where ids are not known (shards)."""
    if run.sample_ids is None or run.epoch is None:
        return True
    first, second = ({}, {})
    for read, epoch in zip((first, second), np.unique(run.epoch)[:2], strict=False):
        for row in np.flatnonzero(run.epoch == epoch):
            read.update(dict.fromkeys(map(int, run.sample_ids[row]), int(of_row[row])))
    shared = [first[i] == second[i] for i in first if i in second]
    return bool(shared) and float(np.mean(shared)) >= (1 + 1 / n) / 2  # 1 if it does, 1/n if they are shuffled


def _split_p(rounds: np.ndarray, epochs: np.ndarray) -> float:
    """How often a random split of the samples among the workers makes one of them stand out so far.

    Where a worker has the same samples in every epoch, more epochs say no more of them: the k batches of one epoch are
    the whole shard, and their spread s makes the standard error of its mean s / sqrt(k). A level is a contrast of one
    mean against n - 1 others; Bonferroni over the n workers.
    """
    from scipy.special import ndtr  # scipy.stats takes a second to import

    n = rounds.shape[1]
    kinds, counts = np.unique(epochs, return_counts=True)
    inside = [rounds[epochs == e].var(axis=0, ddof=1) for e, k in zip(kinds, counts, strict=True) if k > 1]
    if not inside:
        return 1.0
    error = np.sqrt(np.mean(inside) / np.median(counts) * n / (n - 1))
    return float(min(1.0, 2 * n * ndtr(-np.abs(_levels(rounds)).max() / error))) if error > 0 else 0.0


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
