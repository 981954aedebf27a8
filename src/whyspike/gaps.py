"""How long ago a sample was last trained on, and how its loss depends on that.

The *gap* of a sample at a step is the number of samples drawn since the step that last trained on it, in epochs. When
an epoch is reshuffled without replacement, it is p + U(0, 1) at phase p of the epoch: on average 5/8, 7/8, 9/8 and 11/8
in its quarters (causes.md A1). Whatever a network forgets between two visits makes the training loss rise with the gap,
and so with the phase, while the network itself stays as good as it is.

The loss is held against the gap at *one* state of the network, where the gap of every sample is known from the
recorded ids. Phase, learning rate and the network's quality are then the same for all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whyspike.pattern import quarters
from whyspike.types import Run

if TYPE_CHECKING:
    from whyspike.epochs import Epochs

WIDTH = 0.125  # epochs; of a bin
BINS = 16  # up to 2 epochs: the longest gap of a reshuffled epoch, and of a reversed one
PER_BIN = 96  # samples of each bin at each state
LEAST = 16  # samples in a bin, below which it is left out
LEAST_PERIOD = 16  # steps of an epoch, two for each eighth
PHASES = (0.125, 0.375, 0.625, 0.875)  # the middles of the quarters: together they show gaps from 0 to 15/8
EPOCHS = 8  # clusters of the bootstrap
DRAWS = 2000


# --------------------------------------------------------------------------- from the recorded ids


def gaps(run: Run) -> tuple[np.ndarray, ...] | None:
    """The gap of every sample at every step, epochs: T arrays in batch order, nan at a sample's first time.

    None when samples or epochs are not known.
    """
    if run.sample_ids is None or not run.steps_per_epoch or run.batch_size is None:
        return None
    size = _epoch_size(run)
    last = np.full(_n_ids(run), np.nan)
    found, drawn = [], 0
    for ids in run.sample_ids:
        found.append((drawn - last[ids]) / size)
        last[ids] = drawn
        drawn += len(ids)
    return tuple(found)


def gaps_before(run: Run, step: int) -> np.ndarray:
    """The gap that every sample would have at a step, epochs, [N]; nan where it was never trained on."""
    assert run.sample_ids is not None
    last = np.full(_n_ids(run), np.nan)
    drawn = 0
    for ids in run.sample_ids[: int(np.searchsorted(run.step, step))]:
        last[ids] = drawn
        drawn += len(ids)
    return (drawn - last) / _epoch_size(run)


def quarter_gaps(run: Run, found: Sequence[np.ndarray] | None = None) -> np.ndarray | None:
    """The mean gap in each quarter of the epochs from the second on, [4]; None when the samples are not known."""
    found = gaps(run) if found is None else found
    if found is None or run.index is None or run.epoch is None or not run.steps_per_epoch:
        return None
    total, count = np.zeros(4), np.zeros(4)
    for row in np.flatnonzero(run.epoch > run.epoch.min(initial=0)).tolist():
        quarter = min(3, int(run.index[row]) * 4 // run.steps_per_epoch)
        seen = found[row][np.isfinite(found[row])]
        total[quarter] += seen.sum()
        count[quarter] += len(seen)
    return total / count if (count > 0).all() else None


def _epoch_size(run: Run) -> int:
    """Samples of one epoch: the median over the epochs."""
    assert run.sample_ids is not None
    assert run.steps_per_epoch is not None
    sizes = np.array([len(ids) for ids in run.sample_ids])
    if run.epoch is None:
        return int(np.median(sizes) * run.steps_per_epoch)
    return max(1, int(np.median(np.bincount(run.epoch - run.epoch.min(), sizes))))


def _n_ids(run: Run) -> int:
    assert run.sample_ids is not None
    return 1 + max((int(ids.max()) for ids in run.sample_ids if len(ids)), default=0)


# --------------------------------------------------------------------------- the loss at one state of the network


@dataclass(frozen=True)
class Looked:
    """The losses of some batches, each of one bin of gaps, at states of the network: [K] each."""

    cluster: np.ndarray  # which capsule or epoch the state came from
    state: np.ndarray
    bin: np.ndarray
    gap: np.ndarray  # mean gap of the batch, epochs
    loss: np.ndarray  # nats
    n: np.ndarray  # samples
    # log loss on fixed samples at these phases, less a line from the epoch's begin to its end: [E, phases], nats
    probe: np.ndarray | None = None


@dataclass(frozen=True)
class GapCurve:
    """How the loss of a training sample depends on its gap, at the same state of the network."""

    slope: float  # nats per epoch
    interval: tuple[float, float]  # 95 %, bootstrap over clusters
    gap: np.ndarray  # epochs, [K], the bins that were seen
    loss: np.ndarray  # nats, [K], about the level of the states
    n: np.ndarray  # samples, [K]
    states: int
    clusters: int
    observed: np.ndarray  # nats, [4]: the logged loss in the quarters of the epoch, about its mean
    predicted: np.ndarray  # nats, [4]: what the curve makes of the run's own gaps
    probe: tuple[float, float] | None = None  # share of the pattern in the loss on fixed samples, its standard error

    @property
    def explained(self) -> float:
        """The share of the observed pattern of the quarters that the gap alone predicts."""
        size = float(self.observed @ self.observed)
        return float(self.predicted @ self.observed) / size if size > 0 else float("nan")


def look(epochs: Epochs, *, most: int = EPOCHS, phases: Sequence[float] = PHASES, seed: int = 0) -> Looked | None:
    """Evaluate samples of every gap at states along some recorded epochs. Call it inside `subject.kept()`.

    Args:
        most: epochs to look at, spread over the run.
        phases: fractions of the epoch at which to look.

    Returns:
        None where no epoch can be replayed, or where one has fewer than 16 steps.
    """
    run = epochs.subject.run
    windows = epochs.windows(0, int(run.step[-1]), most) if len(run) else []
    if not windows or (run.steps_per_epoch or 0) < LEAST_PERIOD:
        return None
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, float, float, int]] = []
    probes: list[list[float]] = []
    state = 0
    for window in windows:
        seen = []
        for step in epochs.along(window, (0.0, *phases, 1.0)):
            seen.append(float(np.log(max(epochs.subject.probe(), 1e-300))))
            if window.first_step < step <= window.last_step:
                rows += [(window.epoch, state, *row) for row in _at_one_state(epochs.subject.loss_of, run, step, rng)]
                state += 1
        probes.append([v - seen[0] - p * (seen[-1] - seen[0]) for v, p in zip(seen[1:-1], phases, strict=True)])
    if not rows:
        return None
    cluster, states, bins, gap, loss, n = (np.array(c) for c in zip(*rows, strict=True))
    return Looked(cluster, states, bins, gap, loss, n, np.array(probes))


def _at_one_state(
    loss_of: Callable[[np.ndarray], list[tuple[float, int]]], run: Run, step: int, rng: np.random.Generator
) -> list[tuple[int, float, float, int]]:
    """(bin, mean gap, loss, samples) of some samples of every bin."""
    found = gaps_before(run, step)
    known = np.flatnonzero(np.isfinite(found))
    where = np.minimum(found[known] / WIDTH, 1e9).astype(np.int64)
    rows = []
    for b in range(BINS):
        ids = known[where == b]
        if len(ids) < LEAST:
            continue
        ids = rng.permutation(ids)[:PER_BIN]
        begin = 0
        for loss, n in loss_of(ids):
            if np.isfinite(loss):
                rows.append((b, float(found[ids[begin : begin + n]].mean()), loss, n))
            begin += n
    return rows


def curve(looked: Looked, run: Run, *, draws: int = DRAWS, seed: int = 0) -> GapCurve | None:
    """Fit the loss against the gap, and predict the quarters of the epoch from it.

    Slope: least squares with an effect of every state (the means within a state are taken off), batches weighted by
    their samples; its interval resamples whole clusters. Curve: an effect of every state and of every bin. Prediction:
    the curve at the gaps that the run's samples had, averaged over the steps of each quarter.

    Returns:
        None with fewer than two clusters or bins, or where the run has too few epochs.
    """
    observed = quarters(run, np.asarray(run.loss, dtype=np.float64))
    found = gaps(run)
    bins = np.unique(looked.bin)
    names = np.unique(looked.cluster)
    if observed is None or found is None or len(names) < 2 or len(bins) < 2:
        return None
    x, y = _within(looked.gap, looked), _within(looked.loss, looked)
    xy = np.array([np.sum((looked.n * x * y)[looked.cluster == c]) for c in names])
    xx = np.array([np.sum((looked.n * x * x)[looked.cluster == c]) for c in names])
    picked = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    slopes = xy[picked].sum(axis=1) / xx[picked].sum(axis=1)
    low, high = np.quantile(slopes, (0.025, 0.975))
    level = _bin_effects(looked, bins)
    n = np.array([looked.n[looked.bin == b].sum() for b in bins])
    middle = np.array([np.average(looked.gap[looked.bin == b], weights=looked.n[looked.bin == b]) for b in bins])
    return GapCurve(
        slope=float(xy.sum() / xx.sum()),
        interval=(float(low), float(high)),
        gap=middle,
        loss=level - np.average(level, weights=n),
        n=n,
        states=len(np.unique(looked.state)),
        clusters=len(names),
        observed=observed,
        predicted=_predicted(run, found, middle, level),
        probe=_probe_share(run, looked.probe),
    )


def share_of_pattern(table: np.ndarray, shape: np.ndarray) -> tuple[float, float] | None:
    """How much of a pattern of the quarters is in the rows, [K, 4]: the mean least-squares share and its error."""
    rows = table[np.isfinite(table).all(axis=1)] if table.size else table
    size = float(shape @ shape)
    if len(rows) < 4 or size <= 0:
        return None
    shares = (rows - rows.mean(axis=1, keepdims=True)) @ shape / size
    return float(shares.mean()), float(shares.std(ddof=1) / len(shares) ** 0.5)


def _probe_share(run: Run, probe: np.ndarray | None) -> tuple[float, float] | None:
    shape = quarters(run)
    if probe is None or probe.ndim != 2 or probe.shape[1] != 4 or shape is None:
        return None
    return share_of_pattern(probe, shape)


def _within(values: np.ndarray, looked: Looked) -> np.ndarray:
    """The values less the mean of their state, weighted by samples."""
    _, group = np.unique(looked.state, return_inverse=True)
    means = np.bincount(group, looked.n * values) / np.bincount(group, looked.n)
    return values - means[group]


def _bin_effects(looked: Looked, bins: np.ndarray) -> np.ndarray:
    """The effect of every bin beside one of every state, by weighted least squares, [K]."""
    states, state = np.unique(looked.state, return_inverse=True)
    design = np.zeros((len(looked.loss), len(bins) + len(states)))
    design[np.arange(len(state)), np.searchsorted(bins, looked.bin)] = 1.0
    design[np.arange(len(state)), len(bins) + state] = 1.0
    root = np.sqrt(looked.n)
    effects = np.linalg.lstsq(design * root[:, None], looked.loss * root, rcond=None)[0]
    return effects[: len(bins)]


def _predicted(run: Run, found: Sequence[np.ndarray], gap: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The curve at the run's own gaps, averaged over the quarters of the epochs from the second on, about its mean."""
    made = quarter_gaps(run, [np.interp(g, gap, loss, left=loss[0], right=loss[-1]) for g in found])
    return np.zeros(4) if made is None else made - made.mean()
