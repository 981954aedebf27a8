"""What a record says about the last batch of an epoch: its size, its loss beside the others', and how they relate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whyspike.stats import bootstrap_interval
from whyspike.types import Run


@dataclass(frozen=True, kw_only=True)
class LastBatch:
    """The last, smaller batches of a run's epochs."""

    size: int  # samples
    nominal: int  # samples of the other batches
    log_ratio: np.ndarray  # [E] log of each one's loss over the median of the 64 full-size steps before it
    slope: float  # of log_ratio on log(size / nominal): the batch-size exponent that the log itself shows
    interval: tuple[float, float]  # 95 %, bootstrap over epochs

    @property
    def factor(self) -> float:
        """How many times larger the loss of a last batch is, in the median."""
        return float(np.exp(np.median(self.log_ratio)))


def last_batch(run: Run) -> LastBatch | None:
    """Measure the last batches. None when they are as large as the others, or when their losses have no logarithm."""
    if run.index is None or run.n_samples is None or not run.steps_per_epoch or not run.batch_size:
        return None
    rows = np.flatnonzero((run.index == run.steps_per_epoch - 1) & (run.n_samples < run.batch_size))
    ratios = []
    for row in rows:
        before = slice(max(0, row - 64), row)
        full = run.loss[before][run.n_samples[before] == run.batch_size]
        full = full[np.isfinite(full)]
        if len(full) >= 8 and run.loss[row] > 0 and np.isfinite(run.loss[row]) and np.median(full) > 0:
            ratios.append(float(np.log(run.loss[row] / np.median(full))))
    if not ratios:
        return None
    size = int(np.median(run.n_samples[rows]))
    lever = float(np.log(size / run.batch_size))
    log_ratio = np.array(ratios)
    low, high = (
        bootstrap_interval(log_ratio, np.median, seed=0)
        if len(ratios) > 1
        else (float(log_ratio[0]), float(log_ratio[0]))
    )
    ends = sorted((low / lever, high / lever))
    return LastBatch(
        size=size,
        nominal=run.batch_size,
        log_ratio=log_ratio,
        slope=float(np.median(log_ratio)) / lever,
        interval=(ends[0], ends[1]),
    )
