from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

FAMILY_WISE = 0.05  # over all steps of a run: a batch is unusual below 1 / (20 T) (causes.md 2.2)
LARGER = 16  # times the batch size: a chance excess shrinks to a sixteenth


class BatchSizeNoise(Cause):
    """ordinary chance: a mini-batch that drew hard samples.

    What happens:
        The loss of a mini-batch is a mean over a few samples. In thousands of steps some batches are far above the mean
        by chance alone, the more so the smaller the batch and the longer the tail of the per-sample losses.

    How it looks:
        Single points above the others, at no fixed place; the next step is ordinary again and the probe loss is flat.

    How we test it:
        The losses of single samples are measured on the frozen network, and batches of the event's own size are drawn
        from them: a batch as high must be likely in as many steps. Then the step is replayed with the same samples
        inside a batch 16 times as large; as a placebo the ordinary batch before it gets other samples.

    What to do:
        Nothing. To see less of it, plot a running mean or the loss on a fixed probe set, or use larger batches.

    References:
        The standard error of a mean, sigma / sqrt(n). McCandlish et al. 2018, arXiv 1812.06162 (gradient noise scale).
    """

    family = "scale"
    aliases = ("mini-batch-noise", "noise")
    needs = ("batch_null",)
    rank = 60
    measure = "reported"
    harmless = True
    title = "ordinary mini-batch noise"

    def signature(self, seen: Observation) -> Suspicion | None:
        events = [e for e in seen.events if e.id in seen.batch_null and e.kind in ("spike", "dip", "periodic")]
        line = FAMILY_WISE / max(1, len(seen.run))
        still = [e for e in events if e.state is None or e.state < 1.1]
        chance = [e for e in still if seen.batch_null[e.id] > line]
        if not events:
            return None
        shown = chance or events
        lowest = min(seen.batch_null[e.id] for e in shown)
        evidence = [
            Evidence(
                statement="chance that a batch of that size is as high, at the most unusual event",
                observed=f"{lowest:.2g}",
                expected=f"above {line:.2g}, one in twenty runs of {len(seen.run)} steps",
            )
        ]
        if not chance:
            return suspect(
                self, shown, evidence, outcome="refuted", reason="chance does not draw such a batch, or the network moved with it"
            )
        return suspect(self, chance, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import FillBatch, ReplaceSamples

        size = LARGER * (seen.run.batch_size or 1)
        return [
            FillBatch(draw, f"the same samples in a batch {LARGER} times as large", size=size),
            ReplaceSamples(draw, "other samples in their place"),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "other samples in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        size = f" of {seen.run.batch_size} samples" if seen.run.batch_size else ""
        return f"The spikes are ordinary chance: mini-batches{size} that drew hard samples."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="none is needed; to see less of it plot a running mean or the loss on a fixed set of samples",
                    code={"torch": "smoothed = 0.98 * smoothed + 0.02 * loss.item()"},
                    applicability="safe",
                )
            )
        ]
