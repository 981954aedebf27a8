from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

BELOW = 0.5  # of the weights have a sqrt(v) below eps: the median over eps is below 1 (causes.md C9)
SMALLER = 1e-3  # times, in the replay


class AdamEpsTooLarge(Cause):
    """an eps that outweighs Adam's second moment, so that it no longer adapts to the gradients.

    What happens:
        Where eps is larger than sqrt(v), a weight's step is lr g / eps instead of lr g / sqrt(v): layers with small
        gradients, such as embeddings, stand nearly still while the others go on, and what a large gradient does is no
        longer divided by its usual size.

    How it looks:
        For most weights of the snapshots sqrt(v) is below eps.

    How we test it:
        In the snapshots sqrt(v) is held against eps. Where most weights lie below it, the steps around an event are
        replayed with an eps a thousandth as large: the spike must go. As a placebo every weight's learning rate is raised
        or lowered by three tenths at random.
        This cause is a preview: element by element a larger eps makes Adam's step smaller, never larger, so that what it
        does is indirect, over long stretches: a smaller eps in the replay of a few steps makes them longer and removes
        nothing. A small training that spikes because of it has not been looked for yet.

    What to do:
        Lower eps to 1e-8, and measure sqrt(v) first: where it is far above eps, eps is not the cause.

    References:
        OLMo 2, arXiv 2501.00656 (from 1e-5 to 1e-8, for stability). Wortsman et al. 2024, arXiv 2309.14322 (updates
        vanish as gradients come down to eps).
    """

    family = "optimizer"
    status = "preview"
    aliases = ("epsilon-too-large",)
    needs = ("replay",)
    rank = 33
    measure = "state"
    title = "the eps of Adam outweighs its second moment"

    def signature(self, seen: Observation) -> Suspicion | None:
        from whyspike.secondmoment import second_moments

        eps = _eps(seen)
        events = [
            e for e in seen.events if e.kind in ("spike", "divergence") and not e.period and (e.state or 2) >= 1.1
        ]
        if eps is None or not events or not seen.run.capsules:
            return None
        looked = second_moments(seen.run.capsules)
        near = [m for m in looked if any(0 <= e.step - m.step < 64 for e in events)]
        if not near or float(np.median([m.below for m in near])) < BELOW:
            return None
        evidence = [
            Evidence(
                statement="weights whose sqrt(v) is below eps, in the snapshots before the events",
                observed=f"{np.median([m.below for m in near]):.0%} (eps {eps:g}, median of sqrt(v) "
                f"{np.median([m.median for m in near]):.2g})",
                expected="hardly any",
            )
        ]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.optimizer_interventions import SetHyperparameters

        eps = _eps(seen)
        return [] if eps is None else [SetHyperparameters({"eps": SMALLER * eps}, f"eps = {SMALLER * eps:.2g}")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.optimizer_interventions import ShakeLr

        return ShakeLr(
            0.3, "every weight's learning rate 30 % higher or lower at random, as large a change of the step"
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        eps = _eps(seen)
        return (
            f"Adam's eps{'' if eps is None else f' of {eps:g}'} outweighs its second moment, so that it does not adapt; with a "
            "smaller one there is no spike."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import SetHyperparameters

        eps = 1e-8
        return [
            ScratchCure(
                cure=Cure(
                    words=f"lower eps to {eps:.0e}",
                    code={
                        "torch": f"torch.optim.Adam(model.parameters(), lr=lr, eps={eps:.0e})",
                        "keras": f"keras.optimizers.Adam(lr, epsilon={eps:.0e})",
                        "hf": f"TrainingArguments(adam_epsilon={eps:.0e})",
                        "lightning": f"return torch.optim.Adam(self.parameters(), lr=self.lr, eps={eps:.0e})",
                    },
                    applicability="unsafe",
                ),
                make=lambda: SetHyperparameters({"eps": eps}, f"eps = {eps:.0e}"),
            )
        ]


def _eps(seen: Observation) -> float | None:
    optimizer = seen.run.facts.get("optimizer")
    defaults = optimizer.get("defaults") if isinstance(optimizer, dict) else None
    if not isinstance(defaults, dict) or "betas" not in defaults or not defaults.get("eps"):
        return None
    return float(defaults["eps"])
