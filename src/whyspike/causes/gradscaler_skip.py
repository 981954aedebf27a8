from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

OFTEN = 0.01  # of the steps: a scaler that skips more does not find a scale (causes.md E3)
LEAST_SCALE = 1.0  # below it the gradients overflow without any help
SOON = 8  # steps after the scale has grown in which an overflow comes from that
BEGINNING = 64  # steps in which the scaler comes down from where it begins: 2**16 at most to 1 are 16 halvings


class GradscalerSkip(Cause):
    """a GradScaler that skips an update now and then, as it should.

    What happens:
        Float16 gradients are kept from vanishing by a factor on the loss. The scaler doubles it every 2,000 steps until a
        gradient overflows, leaves that update out, and halves it. At the begin it comes down in a few steps. So it finds
        the largest factor that works, and one step in 2,000 is the price.

    How it looks:
        Messages of skipped steps, every 2,000 steps; the loss shows nothing. It is a fault only where it skips all the time,
        or where the factor falls and falls: then the gradients are not finite for another reason.

    How we test it:
        The factor is noted at every step. A skipped update is one after which it is smaller. Each must come right after it
        has grown, in the first steps, or alone; and they must be few, at most one step in a hundred.

    What to do:
        Nothing. Step the scheduler only when the update was made. Where skips are many, look for the overflow.

    References:
        torch.amp.GradScaler (init_scale 2**16, growth_interval 2000). https://github.com/NVIDIA/apex/issues/864 (normal),
        https://github.com/NVIDIA/apex/issues/493 (a cascade, which is not).
    """

    family = "numerics"
    aliases = ("loss-scale", "skipped-step", "gradient overflow, skipping step")
    rank = 85
    title = "the GradScaler skips updates"

    def signature(self, seen: Observation) -> Suspicion | None:
        scaling = _Scaling.of(seen.run)
        if not scaling.skips:
            return None
        n = len(seen.run)
        evidence = [
            Evidence(
                statement="updates that the scaler left out",
                observed=f"{len(scaling.skips):,} of {n:,} ({len(scaling.skips) / n:.2%})",
                expected=f"about one in {scaling.interval or 2000:,}, and a few at the begin",
            ),
            Evidence(
                statement="of these, in the first steps or right after the factor has grown",
                observed=f"{len(scaling.usual):,} of {len(scaling.skips):,}",
                expected="most; the others are single steps with a large gradient",
            ),
            Evidence(
                statement="factor on the loss, smallest and largest",
                observed=f"{scaling.least:,.6g} and {scaling.most:,.6g}",
                expected="above 1",
            ),
        ]
        return suspect(self, (), evidence, identity=True, harm="none" if scaling.normal(n) else "damaging")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        scaling = _Scaling.of(seen.run)
        if not scaling.skips:
            return super().sentence(seen, events)
        n = len(seen.run)
        said = f"Your GradScaler left out {len(scaling.skips):,} of {n:,} updates"
        if scaling.normal(n):
            return f"{said}, each while it looked for the largest factor that works; the loss does not show it."
        return f"{said}, its factor down to {scaling.least:.3g}: the gradients overflow for a reason of their own."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        if _Scaling.of(seen.run).normal(len(seen.run)):
            return [
                ScratchCure(
                    cure=Cure(
                        words="nothing; only step the scheduler when the update was made",
                        code={
                            "torch": "before = scaler.get_scale()\nscaler.step(optimizer); scaler.update()\n"
                            "if scaler.get_scale() >= before:\n    scheduler.step()",
                            "keras": "keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=2000)",
                            "hf": "TrainingArguments(..., fp16=True)   # does so by itself",
                        },
                        applicability="safe",
                    )
                )
            ]
        return [
            ScratchCure(
                cure=Cure(
                    words="compute in bfloat16, which needs no scaler; or find the layer that overflows",
                    code={
                        "torch": 'with torch.autocast("cuda", dtype=torch.bfloat16): ...',
                        "keras": 'keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                        "hf": "TrainingArguments(..., bf16=True, fp16=False)",
                        "lightning": 'Trainer(..., precision="bf16-mixed")',
                    },
                    applicability="safe",
                )
            )
        ]


@dataclass(frozen=True)
class _Scaling:
    """What the scaler of a run did. Steps are those of the updates."""

    skips: tuple[int, ...]
    usual: tuple[int, ...]  # of these, those that look for the largest factor
    least: float
    most: float
    interval: int | None

    @classmethod
    def of(cls, run: Run) -> _Scaling:
        skips, grown, values = [], [], []
        interval = None
        for mark in run.marked("loss-scale"):
            before, now = mark.data.get("before"), float(mark.data["scale"])
            interval = mark.data.get("interval", interval)
            values.append(now)
            if before is None or before == now:
                continue
            (skips if now < before else grown).append(mark.step)
        usual = [s for s in skips if s < BEGINNING or any(0 < s - g <= SOON for g in grown)]
        return cls(tuple(skips), tuple(usual), min(values, default=1.0), max(values, default=1.0), interval)

    def normal(self, n: int) -> bool:
        late = sum(s >= BEGINNING for s in self.skips)
        return late <= OFTEN * n and self.least >= LEAST_SCALE
