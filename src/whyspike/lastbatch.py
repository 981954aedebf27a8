"""What a record says about the last batch of an epoch: its size, its loss beside the others', and how they relate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whyspike.cause import Cause, Observation, suspect
from whyspike.stats import bootstrap_interval
from whyspike.types import Event, Evidence, Run, Suspicion


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


EXACT = 0.02  # on a separable loss the duplicate probe is exact to rounding (benchmarks/exponent.py)
OBSERVED = 0.25  # of the slope that the record alone shows (causes.md B1)


def suspicion_of_power(
    cause: Cause, seen: Observation, events: Sequence[Event], power: int, words: str
) -> Suspicion | None:
    """A suspicion that the loss goes as n**power with the number of samples, because it is `words`.

    Proven by the exponent where it could be measured, likely by the last batches of the record otherwise. None when
    nothing points there.
    """
    last = last_batch(seen.run)
    if not events or last is None:
        return None
    share = (last.size / last.nominal) ** power
    ratio = Evidence(
        statement=f"loss of the last batch ({last.size} samples) over that of the others ({last.nominal})",
        observed=f"x {last.factor:.3g}",
        expected=f"x {share:.3g} for {words}, x 1 for a mean",
    )
    if seen.exponent is not None:
        alpha = seen.exponent.alpha
        evidence = (
            Evidence(
                statement="exponent of the loss in the batch size (duplicated samples, frozen network)",
                observed=f"{alpha:+.3f}",
                expected=f"0 for a mean, {power:+d} for {words}",
            ),
            ratio,
        )
        if abs(alpha - power) <= EXACT:
            return suspect(cause, events, evidence, identity=True)
        return suspect(
            cause, events, evidence, outcome="refuted", reason=f"the exponent is {alpha:+.3f}, not {power:+d}"
        )
    low, high = last.interval
    slope = Evidence(
        statement="slope of log loss on log batch size, last batch against the others",
        observed=f"{last.slope:+.2f} ({low:+.2f} to {high:+.2f})",
        expected=f"{power:+d} for {words}, 0 for a mean",
    )
    far = min(abs(low), abs(high)) > 0.5 and low * high > 0
    return suspect(cause, events, (ratio, slope)) if abs(last.slope - power) <= OBSERVED and far else None
