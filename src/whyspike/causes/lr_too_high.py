from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.profile import Profile
    from whyspike.seams import Intervention

MOSTLY = 0.5  # of the profiled spikes: more of them without a batch to blame than with one


class LrTooHigh(Cause):
    """steps that are too large for the curvature: the learning rate is too high, or does not decay.

    What happens:
        The optimizer steps past the bottom of the valley that it is in, on whatever batch comes next. The nearer it
        comes to a minimum, the more the same step length hurts, so that the spikes come when the loss is low. Any
        optimizer does it: SGD looks smooth beside Adam as long as it has not come as far down.

    How it looks:
        Spikes of the network itself, at no fixed place. The batches of the steps before them are ordinary, the
        gradients too, and with other batches there is a spike as well, or one a little later.

    How we test it:
        Each batch of the 12 steps before a spike is skipped in turn, and the steps are replayed with other batches: no
        single batch may carry it. Then they are replayed at seven tenths of the learning rate. As a placebo every weight's
        learning rate is raised or lowered by three tenths at random: as large a change of every step, of the same mean length.

    What to do:
        Lower the learning rate, or let it decay: late in the training it is too high first.

    References:
        https://stats.stackexchange.com/q/303857. Experiment Q2, docs/benchmarks/second_question.md. Wu, Ma & E 2018
        (NeurIPS), on the stability of SGD.
    """

    family = "optimizer"
    aliases = ("no-decay", "learning-rate", "overshooting")
    needs = ("replay",)
    rank = 40
    measure = "state"
    title = "the learning rate is too high for the curvature"

    def signature(self, seen: Observation) -> Suspicion | None:
        profiles = [p for p in seen.profiles.values() if not p.same_batch]
        large = [p for p in profiles if p.kind == "large steps"]
        if not large:
            return None
        events = [e for e in seen.events if e.id in {p.event for p in large}]
        best = [p.batch_share for p in large if p.batch_share is not None]
        others = [s for p in large for s in p.others]
        evidence = [
            Evidence(
                statement="spikes of the network that no single batch carries",
                observed=f"{len(large)} of {len(profiles)} that were replayed",
                expected="most of them if the step size is to blame, few if the data are",
            ),
            Evidence(
                statement="removed when the best of the 12 batches before is skipped (median of these spikes)",
                observed=_removed(large, best) if best else "no batch could be skipped",
                expected="80 % or more if one batch sets the spike off",
            ),
            Evidence(
                statement="left when the batches before are others (median of all draws)",
                observed=f"{1 - np.median(others):.0%}" if others else "not tried",
                expected="0 % if these very batches are needed, 100 % if none are",
            ),
        ]
        if len(large) <= MOSTLY * len(profiles):
            reason = (
                f"single batches carry {len(profiles) - len(large)} of the {len(profiles)} spikes that were replayed"
            )
            return suspect(self, events, evidence, outcome="refuted", reason=reason)
        # Of a training whose replays are dear only some spikes were looked at: its trials tell of the others.
        others_like = [e for e in seen.events if e.id in seen.unprofiled]
        if others_like:
            evidence.append(
                Evidence(
                    statement="spikes of the network that were not replayed batch by batch, for want of time",
                    observed=f"{len(others_like)}",
                    expected="gone at a lower learning rate, as those that were, if they are of the same kind",
                )
            )
            events = [e for e in seen.events if e in events or e in others_like]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm, ScaleLr

        arms: list[Intervention] = [ScaleLr(0.7, "learning rate x 0.7", "always")]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms.append(ClipGradNorm(3 * norm, "gradient clipped to 3 x its median norm", "always"))
        return [*arms, ScaleLr(0.1, "learning rate / 10 (the ceiling: it removes anything)", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.optimizer_interventions import ShakeLr

        return ShakeLr(
            0.3, "every weight's learning rate 30 % higher or lower at random, as large a change of the step"
        )

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        clipped = [
            v for p in seen.profiles.values() if (v := p.share("gradient clipped to 3 x its median norm")) is not None
        ]
        if not clipped:
            return ()
        return [
            Evidence(
                statement="removed by clipping at 3 x the median gradient norm, where a batch was suspected",
                observed=f"{np.median(clipped):.0%} ({len(clipped)} spikes)",
                expected="all of it if a batch with an extreme gradient sets the spike off",
            )
        ]

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        return (
            "Your training takes steps that are too large for the curvature: no batch and no sample sets these spikes off, "
            "and shorter steps remove them."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ScaleLr

        return [
            ScratchCure(
                cure=Cure(
                    words="lower the learning rate to a third",
                    code={
                        "torch": "optimizer = torch.optim.Adam(model.parameters(), lr=lr / 3)",
                        "keras": "model.compile(optimizer=keras.optimizers.Adam(lr / 3), loss=loss)",
                        "hf": "TrainingArguments(learning_rate=lr / 3)",
                        "lightning": "return torch.optim.Adam(self.parameters(), lr=self.lr / 3)",
                    },
                    applicability="unsafe",
                ),
                make=lambda: ScaleLr(1 / 3, "learning rate / 3", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words="or let it decay, so that it is lower when the loss is low",
                    code={
                        "torch": "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)",
                        "keras": "keras.optimizers.schedules.CosineDecay(lr, total_steps)",
                        "hf": 'TrainingArguments(lr_scheduler_type="cosine", warmup_ratio=0.05)',
                        "lightning": "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)",
                    },
                    applicability="unsafe",
                )
            ),
        ]


def _removed(profiles: Sequence[Profile], shares: Sequence[float]) -> str:
    return f"{'at most ' if any(p.at_most for p in profiles) else ''}{np.median(shares):.0%}"
