from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

NEAR = 0.5  # of the weights have a sqrt(v) below ten times eps (causes.md C8)
WITHIN = 64  # steps between a snapshot and the event that it tells of
LARGER = 1000.0  # times, in the replay


class AdamEpsTooSmall(Cause):
    """gradients that have died away, divided by nearly nothing: Adam's eps is too small.

    What happens:
        Late in a training, or for features that hardly ever occur, gradients come down to rounding noise. Adam divides by
        the root of their mean square, so that the noise is blown up to steps of full length.

    How it looks:
        The loss is next to zero and jumps by several orders of magnitude, again and again. Before each jump, sqrt(v) of
        most weights lies at eps, or below ten times of it.

    How we test it:
        In the snapshots sqrt(v) is held against eps. Where it has come down to it before an event, the steps are replayed
        with an eps a thousand times as large: the event must go. As a placebo every weight's learning rate is raised or
        lowered by three tenths at random.
        This cause is a preview. A training that is truly sick of it exists: some hundred digits learnt by heart, Adam with
        beta2 = .95 and an eps of 1e-8. But its jumps are so rare that the few of a run seldom reach the p that a
        confirmation needs, so it is no case yet. At beta2 = .999 sqrt(v) forgets too slowly to come down to eps within some
        thousand steps.

    What to do:
        Raise eps to 1e-6 or more, or stop: such a loss has nothing left to teach.

    References:
        https://stackoverflow.com/q/42327543 (Adam after 200,000 batches). https://datascience.stackexchange.com/q/25024.
        Thilak et al. 2022, arXiv 2206.04817 (slingshots, which a larger eps suppresses).
    """

    family = "optimizer"
    status = "preview"
    aliases = ("epsilon", "eps", "adam-epsilon")
    needs = ("replay",)
    rank = 32
    measure = "state"
    title = "the update of Adam divides gradients that have died away by nearly nothing"

    def signature(self, seen: Observation) -> Suspicion | None:
        from whyspike.secondmoment import second_moments

        eps = _eps(seen)
        events = [
            e
            for e in seen.events
            if e.kind in ("spike", "divergence", "level-shift") and not e.period and (e.state or 2) >= 1.1
        ]
        if eps is None or not events or not seen.run.capsules:
            return None
        looked = second_moments(seen.run.capsules)
        # Each event by the last snapshot before it: while the network recovers, the second moment is large again.
        before = {e.id: [m for m in looked if 0 <= e.step - m.step < WITHIN][-1:] for e in events}
        events = [e for e in events if any(m.near >= NEAR for m in before[e.id])]
        near = [m for e in events for m in before[e.id]]
        if not near:
            return None
        evidence = [
            Evidence(
                statement="weights whose sqrt(v) is below ten times eps, in the snapshots before the events",
                observed=f"{np.median([m.near for m in near]):.0%} (eps {eps:g}, median of sqrt(v) "
                f"{np.median([m.median for m in near]):.2g})",
                expected="hardly any",
            )
        ]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.optimizer_interventions import SetHyperparameters

        eps = _eps(seen)
        return [] if eps is None else [SetHyperparameters({"eps": LARGER * eps}, f"eps = {LARGER * eps:.2g}")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.optimizer_interventions import ShakeLr

        return ShakeLr(
            0.3, "every weight's learning rate 30 % higher or lower at random, as large a change of the step"
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        eps = _eps(seen)
        return (
            "Adam divides gradients that have died away by nearly nothing"
            f"{'' if eps is None else f': its eps is {eps:g}'}; with a larger eps there is no spike."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import SetHyperparameters

        eps = LARGER * (_eps(seen) or 1e-8)
        return [
            ScratchCure(
                cure=Cure(
                    words=f"raise eps to {eps:.0e}",
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
