from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention, StepContext

SLOPE = 0.25  # around -1 (causes.md B3)


class WrongDenominator(Cause):
    """a loss that is divided by a count which is small in some batches.

    What happens:
        The loss sums over everything (all cells, all tokens) but is divided by another count: boxes, positives, valid
        tokens. A batch with few of them has a large loss and a large gradient, whatever its samples are.

    How it looks:
        Spikes on batches of the ordinary size, whose height is the typical count over theirs.

    How we test it:
        The counts in the recorded batches are compared with their losses: the slope of log loss on log count is -1.
        Then the steps are replayed with the event's loss multiplied by its count over the typical count; as a placebo
        the ordinary batch before it gets that factor.

    What to do:
        Divide by what was summed over, or by a count that does not depend on the batch: its running mean, or the sum
        over all workers.

    References:
        Liu et al. 2016, arXiv 1512.02325 (SSD divides by the matched boxes); Carion et al. 2020, arXiv 2005.12872 (DETR
        divides by the boxes of all workers). The duplicate probe is blind to it: duplicates keep the ratio.
    """

    family = "scale"
    needs = ("units",)
    rank = 12
    measure = "reported"
    title = "the loss is divided by a count that is small in some batches"

    def signature(self, seen: Observation) -> Suspicion | None:
        units = seen.units
        if units is None:
            return None
        events = [e for e in seen.events if e.kind in ("spike", "periodic")]
        low = [e for e in events if units.by_step.get(e.step, units.typical) <= 0.7 * units.typical]
        if not low:
            return None
        evidence = [
            Evidence(
                statement=f"slope of log loss on log count, full batches ({units.name})",
                observed=f"{units.slope:+.2f} ({units.interval[0]:+.2f} to {units.interval[1]:+.2f})",
                expected="-1 if the loss is divided by it and does not sum over it, 0 if it is not",
            ),
            Evidence(
                statement="that count at the spikes",
                observed=", ".join(f"{units.by_step[e.step]:g}" for e in low[:5] if e.step in units.by_step),
                expected=f"{units.typical:g}, its median",
            ),
        ]
        if abs(units.slope + 1) > SLOPE or not units.interval[1] < -0.5:
            return suspect(self, low, evidence, outcome="refuted", reason=f"the slope is {units.slope:+.2f}, not -1")
        if seen.exponent is not None and abs(seen.exponent.alpha) > 0.05:
            return suspect(
                self,
                low,
                evidence,
                outcome="refuted",
                reason=f"the loss depends on the batch size (exponent {seen.exponent.alpha:+.2f})",
            )
        return suspect(self, low, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import FillBatch, RescaleLoss, SkipBatch

        size = seen.run.batch_size or 1
        return [
            RescaleLoss(_share(seen), "its loss multiplied by its count over the typical count"),
            FillBatch(draw, "the same samples in a batch four times as large", size=4 * size),
            SkipBatch(),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RescaleLoss

        low = [seen.units.by_step[e.step] for e in seen.events if seen.units and e.step in seen.units.by_step]
        share = min(1.0, min(low) / seen.units.typical) if low and seen.units else 1.0
        return RescaleLoss(lambda at: share, "that factor on the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        if seen.units is None:
            return super().sentence(seen, events)
        return (
            f"Your loss spikes on batches with few {seen.units.name.split(' of ')[0]}: the loss is divided by their number, "
            "which is small there, and does not sum over them alone."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="divide by what is summed over, or by the mean count of many batches",
                    code={
                        "torch": "mean_count = 0.99 * mean_count + 0.01 * count\nloss = total / max(mean_count, 1)",
                        "keras": "loss = total / keras.ops.maximum(mean_count, 1.0)",
                    },
                    applicability="unsafe",
                )
            )
        ]


def _share(seen: Observation):
    units = seen.units

    def factor(at: StepContext) -> float:
        return units.by_step.get(at.step, units.typical) / units.typical if units else 1.0

    return factor
