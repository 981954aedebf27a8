from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.seams import Intervention


class MomentumCarryOver(Cause):
    """one bad gradient that the optimizer's momentum carries into the following steps.

    What happens:
        A gradient that enters the momentum is applied again and again, with weight mu^k after k steps. In all it moves
        the weights 1/(1 - mu) times as far as one step: ten times at .9. Half of it is spent after 6.6 steps, 90 % after
        21. It is not a root cause: something made the gradient bad.

    How it looks:
        The probe loss rises for several steps after the spike before it falls again.

    How we test it:
        The steps are replayed with the bad gradient taken out of the momentum right after its own step: the first point
        stays, the growth after it goes. As a placebo the gradient of the ordinary batch before is taken out instead.

    What to do:
        Remove the root cause. Where that cannot be done, clip the gradient, which acts before the momentum.

    References:
        Polyak 1964. The weights mu^k: algebra of v <- mu v + g. https://stackoverflow.com/q/47824598 names the effect.
    """

    family = "optimizer"
    needs = ("replay",)
    rank = 80
    measure = "growth"
    title = "the optimizer's momentum carries the bad gradient into the next steps"

    def signature(self, seen: Observation) -> Suspicion | None:
        decay = seen.momentum()
        events = [e for e in seen.events if e.kind in ("periodic", "spike", "divergence", "level-shift")]
        moved = [e for e in events if e.state is None or e.state >= 1.1]
        if not decay or not moved:
            return None
        evidence = [
            Evidence(
                statement="decay of the optimizer's momentum: half of a gradient is spent after",
                observed=f"{np.log(0.5) / np.log(decay):.1f} steps (momentum {decay:g})",
                expected="at once, without momentum",
            )
        ]
        return suspect(
            self, moved, evidence, outcome="untested", reason="only a replay can tell; ask for it with prove=True"
        )

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import SubtractMomentum, ZeroMomentum

        return [SubtractMomentum(), ZeroMomentum()]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import SubtractMomentum

        return SubtractMomentum("the gradient of the batch before it taken out instead", "control")

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        """The first point stays; five steps later the damage is smaller."""
        rows = []
        for k, expected in (
            (0, "the same: the first update is already made"),
            (5, "less, if the momentum carries it on"),
        ):
            base, zeroed = (_rises(trials, words, k) for words in ("as it was", "momentum set to zero"))
            shared = sorted(base.keys() & zeroed.keys())
            if shared:
                rows.append(
                    Evidence(
                        statement=f"probe loss {k} steps after the spike's own, over its level before, with momentum set to zero",
                        observed=f"x {np.median([zeroed[p] for p in shared]):.3g}; "
                        f"x {np.median([base[p] for p in shared]):.3g} as it was",
                        expected=expected,
                    )
                )
        return rows

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        decay = seen.momentum() or 0.9
        return (
            f"The optimizer's momentum ({decay:g}) carries the gradient of the spike into the next "
            f"{np.log(0.1) / np.log(decay):.0f} steps, so that the damage grows after the spike itself."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="remove what made the gradient bad; a smaller momentum only spreads it less",
                    code={
                        "torch": "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)   # acts before the momentum",
                        "keras": "keras.optimizers.SGD(..., global_clipnorm=max_norm)",
                        "lightning": "Trainer(gradient_clip_val=max_norm)",
                        "hf": "TrainingArguments(max_grad_norm=max_norm)",
                    },
                    applicability="manual",
                )
            )
        ]


def _rises(trials: Sequence[Trial], words: str, k: int) -> dict[int, float]:
    """Of each pair: the probe loss k steps after the event's step over its level before."""
    values = {}
    for t in trials:
        at = t.event_step - t.first_step + k
        if words in t.words and t.arm != "placebo" and at < len(t.state) and t.state_reference > 0:
            values[t.pair] = t.state[at] / t.state_reference
    return values
