from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

if TYPE_CHECKING:
    from whyspike.plotted import Plotted

LEAST = 0.005  # of the metric: half a percent, below which no curve is read in another way


class MetricUnweightedMean(Cause):
    """an epoch's metric that counts every batch alike, or divides by another count.

    What happens:
        The loss of an epoch is plotted as the mean of its batches' means. When the last batch is smaller, its few
        samples count as much as a full batch, and their chance moves the whole epoch's number. Or the sum is divided by
        a count that is not its own: one batch more or less, or the nominal size of all batches.

    How it looks:
        The metric of an epoch jumps about, or lies beside its true value by a constant factor, S / (S +- 1). Two
        programs, or two batch sizes, give different numbers for the same network. The loss of the steps knows nothing
        of it.

    How we test it:
        The metric is computed from the recorded losses: it equals the unweighted mean (or the sum over the other count)
        to its last digit, and not the mean weighted by samples. The difference of the two must be the covariance of size
        and loss over the mean size, which the record gives as well.

    What to do:
        Weight each batch by its samples.

    References:
        Sum(n L) / sum(n) - mean(L) = Cov(n, L) / mean(n). Keras 3 weights by the batch size
        (`_loss_tracker.update_state(loss, sample_weight=...)`); Lightning's `self.log` needs `batch_size=`.
    """

    family = "scale"
    aliases = ("mean-of-batch-means", "epoch-mean")
    needs = ("n_samples",)
    rank = 45
    title = "the epoch's metric counts every batch alike, whatever its size"

    def signature(self, seen: Observation) -> Suspicion | None:
        for found in seen.plotted.values():
            made = _compared(seen.run, found) if _wrong(found) else None
            if made is None or made.off < LEAST:
                continue
            evidence = [found.evidence]
            if found.divisor:
                other = f"{made.ratio:.4f} of the mean weighted by samples"
                evidence.append(
                    Evidence(statement="the number of an epoch, in the median", observed=other, expected="1")
                )
            else:
                evidence.append(
                    Evidence(
                        statement="mean weighted by samples, less the logged one, over the epochs: root of the mean square",
                        observed=f"{made.gap:.3g}, {100 * made.off:.1f} % of it",
                        expected=f"{made.covariance:.3g}, the covariance of size and loss over the mean size",
                    )
                )
            return suspect(self, (), evidence, identity=True)
        return None

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = next((f for f in seen.plotted.values() if _wrong(f)), None)
        if found is None:
            return super().sentence(seen, events)
        made = _compared(seen.run, found)
        off = f", which moves it by {100 * made.off:.1f} %" if made is not None else ""
        alike = "" if found.divisor else ", where a small batch counts as much as a full one"
        return f"The logged {found.name} is {found.words}{alike}, and not the mean over its samples{off}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        cure = Cure(
            words="weight each batch by its samples",
            code={
                "torch": "total += loss.item() * len(batch[0]); count += len(batch[0])\nepoch_loss = total / count",
                "keras": 'metric = keras.metrics.Mean("loss"); metric.update_state(loss, sample_weight=len(x))',
                "lightning": 'self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))',
            },
            applicability="safe",
        )
        return [ScratchCure(cure=cure)]


def _wrong(found: Plotted) -> bool:
    """A mean over the epoch that is not weighted by samples, though their number differs, or has another divisor."""
    return found.form == "running-mean" and (not found.weighted or bool(found.divisor)) and found.rival_residual > 0


class _Compared:
    """The logged number of each epoch beside the mean over its samples."""

    def __init__(self, off: float, ratio: float, gap: float, covariance: float) -> None:
        self.off, self.ratio, self.gap, self.covariance = off, ratio, gap, covariance


def _compared(run: Run, found: Plotted) -> _Compared | None:
    import numpy as np

    from whyspike.folding import places
    from whyspike.signals import logged

    if run.n_samples is None or not run.steps_per_epoch:
        return None
    series = logged(run)[found.name]
    cycle, _ = places(run, run.step)
    gaps, ratios, covariances = [], [], []
    for e in np.unique(cycle):
        rows = np.flatnonzero(cycle == e)
        at = np.flatnonzero(series.step == run.step[rows[-1]] - found.shift)
        if len(rows) < run.steps_per_epoch or not len(at) or not np.isfinite(run.loss[rows]).all():
            continue
        n, loss = run.n_samples[rows].astype(np.float64), run.loss[rows]
        true = float((n * loss).sum() / n.sum())
        gaps.append(true - float(series.value[at[0]]))
        ratios.append(float(series.value[at[0]]) / true)
        covariances.append(float(np.mean((n - n.mean()) * (loss - loss.mean())) / n.mean()))
    if len(gaps) < 3:
        return None
    square = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
    return _Compared(square(np.array(ratios) - 1), float(np.median(ratios)), square(gaps), square(covariances))
