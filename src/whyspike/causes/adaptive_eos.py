from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.logsigns import same_data_every_step
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

AT_THE_LIMIT = (0.85, 1.1)  # sharpness over the limit before an onset; .93 to 1.04 in benchmarks/second_question.py


class AdaptiveEos(Cause):
    """full-batch training at the edge of stability: curvature above what the step size can stand.

    What happens:
        The loss bends more and more along a few directions until the optimizer oscillates across them with growing
        amplitude: gradient descent when the curvature passes 2/lr, Adam when that of its own metric passes 38/lr (at
        beta1 = .9). The loss rises, the network is thrown to a flatter place, and it begins again.

    How it looks:
        Spikes of the full loss without any randomness in the data, log-linear over a few steps, every 20 to 80 steps.
        The largest curvature in the optimizer's metric, times lr, lies at the limit before each of them.

    How we test it:
        The steps are replayed with a learning rate that is a tenth lower: below the limit nothing grows, so the whole
        spike must go. As a placebo every weight's learning rate is made a tenth higher or lower at random, as large a
        change of every step. The sharpness is a power iteration on Hessian-vector products.

    What to do:
        Lower the learning rate or let it decay. Spikes that return within some steps do no lasting harm.

    References:
        Cohen et al. 2021, arXiv 2103.00065. Cohen et al. 2022, arXiv 2207.14484 (38/lr for Adam). The spikes are
        not those of mini-batches: https://stats.stackexchange.com/q/303857 says that full batches have none.
    """

    family = "optimizer"
    aliases = ("edge-of-stability", "sharpness-above-threshold", "catapult")
    needs = ("replay",)
    rank = 30
    measure = "state"
    title = "full-batch training is at the edge of stability"
    decides = "record the training with whyspike.watch and prove it: it measures the sharpness before each spike"

    def signature(self, seen: Observation) -> Suspicion | None:
        profiles = [p for p in seen.profiles.values() if p.same_batch]
        if not profiles:
            return self._of_log(seen) or self._unreplayed(seen)
        ratios = [r for p in profiles for r in p.sharpness[-2:]]
        # What holds for the spikes that were replayed holds for the others of the same kind.
        # One that is long in going back is a level shift.
        events = [e for e in seen.events if e.id in seen.profiles or _is_up(e)]
        evidence = [
            Evidence(
                statement="samples of one step",
                observed="the same in every step",
                expected="the same; then no batch and no sample can be to blame",
            )
        ]
        if not ratios:
            reason = "the sharpness could not be measured: its limit is known for SGD, Adam and AdamW"
            return suspect(self, events, evidence, outcome="untested", reason=reason)
        low, high = AT_THE_LIMIT
        typical = float(np.median(ratios))
        evidence.append(
            Evidence(
                statement="sharpness over the optimizer's limit, in the 4 steps before the spikes",
                observed=f"{typical:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(profiles)} spikes)",
                expected=f"{low:g} to {high:g} at the edge of stability, lower elsewhere",
            )
        )
        if not low <= typical <= high:
            reason = f"the sharpness is {typical:.2f} of the limit, not at it"
            return suspect(self, events, evidence, outcome="refuted", reason=reason)
        return suspect(self, events, evidence)

    def _of_log(self, seen: Observation) -> Suspicion | None:
        events = same_data_every_step(seen.run, seen.events)
        if not events:
            return None
        evidence = Evidence(
            statement="steps in an epoch",
            observed="1, at a learning rate that does not change",
            expected="more; where each step sees all the data, no batch and no sample can be to blame",
        )
        return suspect(self, events, [evidence])

    def _unreplayed(self, seen: Observation) -> Suspicion | None:
        events = [e for e in seen.events if e.kind == "spike" and not e.period]
        size = seen.run.facts.get("dataset_size")
        if not events or seen.profiles or seen.run.steps_per_epoch != 1 or size is None or seen.run.batch_size != size:
            return None
        evidence = [
            Evidence(
                statement="samples of one step",
                observed=f"all {size}",
                expected=f"all {size}; then no batch and no sample can be to blame",
            )
        ]
        reason = "the sharpness needs the network: ask for it with prove=True"
        return suspect(self, events, evidence, outcome="untested", reason=reason)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ScaleLr
        from whyspike.optimizer_interventions import SetHyperparameters

        arms: list[Intervention] = [ScaleLr(0.9, "learning rate x 0.9", "always")]
        beta1 = seen.momentum()
        if beta1 is not None:
            raised = (1 + beta1) / 2
            words = f"beta1 {raised:g} instead of {beta1:g}: its limit is {_limit(raised) / _limit(beta1):.2g} times as high"
            if "betas" in _defaults(seen):
                betas = _defaults(seen)["betas"]
                arms.append(SetHyperparameters({"betas": (raised, betas[1])}, words))
        return [*arms, ScaleLr(0.1, "learning rate / 10 (the ceiling: it removes anything)", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.optimizer_interventions import ShakeLr

        return ShakeLr(
            0.1, "every weight's learning rate 10 % higher or lower at random, as large a change of the step"
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        ratios = [r for p in seen.profiles.values() for r in p.sharpness[-2:]]
        at = (
            f": before the spikes the curvature is {np.median(ratios):.2f} of what its step size can stand"
            if ratios
            else ""
        )
        return (
            f"Your loss spikes without any help from the data: every step has the same samples, and the optimizer is at "
            f"the edge of stability{at}."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ScaleLr
        from whyspike.optimizer_interventions import SetHyperparameters

        cures = [
            ScratchCure(
                cure=Cure(
                    words="lower the learning rate to a tenth, or let it decay to there",
                    code={
                        "torch": "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)",
                        "keras": "keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(lr, total_steps))",
                        "hf": 'TrainingArguments(learning_rate=lr, lr_scheduler_type="cosine", warmup_ratio=0.05)',
                    },
                    applicability="unsafe",
                ),
                make=lambda: ScaleLr(0.1, "learning rate / 10", "always"),
            )
        ]
        if "betas" in _defaults(seen):
            beta1 = _defaults(seen)["betas"][0]
            cures.append(
                ScratchCure(
                    cure=Cure(
                        words="not this: a smaller beta2 does not move the limit, and the spikes stay",
                        code={"torch": "torch.optim.Adam(parameters, betas=(0.9, 0.9))"},
                        applicability="unsafe",
                    ),
                    make=lambda: SetHyperparameters({"betas": (beta1, 0.9)}, "beta2 = 0.9"),
                    expected="fails",
                )
            )
        return cures


def _is_up(event: Event) -> bool:
    shift = event.kind == "level-shift" and (event.reported or 0.0) > 1.0
    return (event.kind == "spike" or shift) and not event.period


def _limit(beta1: float) -> float:
    return 2 * (1 + beta1) / (1 - beta1)


def _defaults(seen: Observation) -> dict:
    optimizer = seen.run.facts.get("optimizer")
    found = optimizer.get("defaults") if isinstance(optimizer, dict) else None
    return found if isinstance(found, dict) else {}
