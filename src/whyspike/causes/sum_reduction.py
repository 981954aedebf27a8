from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup
from whyspike.lastbatch import EXACT, last_batch, suspicion_of_power
from whyspike.types import Cure, Event, Finding, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention


class SumReduction(Cause):
    """a loss that is a sum over the batch, not a mean.

    What happens:
        Loss and gradient grow with the number of samples. A smaller last batch shows as a dip, a larger batch as a
        spike, and the learning rate means something else for every batch size.

    How it looks:
        One dip per epoch on the last batch, of the height last size over nominal size.

    How we test it:
        A quarter of a batch is duplicated once, twice and four times on the frozen network: a sum doubles with the
        samples (exponent +1). Then the steps are replayed with the last batch's loss multiplied by B/b; as a placebo
        the ordinary batch before it gets that factor.

    What to do:
        Use a mean, and multiply the learning rate by the batch size that it was tuned for.

    References:
        Goyal et al. 2017, arXiv 1706.02677, section 2 (the learning rate and the size of the mini-batch). The
        two-parameter probe: benchmarks/exponent.py.
    """

    family = "scale"
    needs = ("n_samples",)
    rank = 14
    measure = "dip"
    title = "the loss is a sum over the batch, not a mean"
    decides = "compute the loss of one batch, and of that batch twice over; a mean is the same, a sum is double"

    def preflight(self, setup: Setup) -> Finding | None:
        if setup.exponent is None or abs(setup.exponent.alpha - 1) > EXACT:
            return None
        return Finding(
            cause=self.id,
            text="the loss grows with the batch size: it is a sum, so the learning rate depends on the batch size",
            observed=f"exponent {setup.exponent.alpha:+.3f}",
            expected="0 (a mean)",
            cure='reduction="mean", and the learning rate times the batch size',
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        events = [
            e for e in seen.last_batch_events() if e.kind == "dip" or (e.kind == "periodic" and (e.reported or 0) < 1)
        ]
        return suspicion_of_power(self, seen, events, 1, "a sum")

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import FillBatch, ReplaceSamples, RescaleLoss

        return [
            RescaleLoss(
                lambda at: at.batch_size / at.n_samples, "that batch's loss multiplied by B/b (as a mean would be)"
            ),
            FillBatch(draw),
            ReplaceSamples(draw, "other samples in the small batch"),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RescaleLoss

        last = last_batch(seen.run)
        if last is None:
            return None
        factor = last.nominal / last.size
        return RescaleLoss(lambda at: 1 / factor, "the inverse factor on the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        last = last_batch(seen.run)
        if last is None:
            return super().sentence(seen, events)
        return (
            f"Your loss dips once an epoch, on the last batch: the loss is a sum, and that batch has {last.size} samples "
            f"instead of {last.nominal}."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import RescaleLoss, SkipBatch

        nominal = seen.run.batch_size or 1
        return [
            ScratchCure(
                cure=Cure(
                    words=f"use a mean; multiply the learning rate by {nominal}, which it was tuned for",
                    code={
                        "torch": f'F.cross_entropy(scores, classes, reduction="mean")   # and lr * {nominal}',
                        "keras": f'keras.losses.CategoricalCrossentropy(reduction="sum_over_batch_size")   # and lr * {nominal}',
                    },
                    applicability="safe",
                ),
                make=lambda: RescaleLoss(lambda at: at.batch_size / at.n_samples, "as a mean", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words="drop the last batch: it hides the dip, the learning rate still depends on the batch size",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True, drop_last=True)",
                        "keras": "dataset.shuffle(N).batch(B, drop_remainder=True)",
                        "hf": "TrainingArguments(dataloader_drop_last=True)",
                    },
                    applicability="unsafe",
                ),
                make=lambda: SkipBatch("the last batch dropped", "partial"),
            ),
        ]
