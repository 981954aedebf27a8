from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.form import percent
from whyspike.types import Cure, Event, Evidence, Suspicion

MOVES = 0.8  # of the event: the contract's share of an excess that a cause must account for; and no more than 1.2


class MixedLossTerms(Cause):
    """a total of several terms, of which one has a schedule.

    What happens:
        The plotted loss is a sum: reconstruction and KL, a main loss and auxiliary ones, a penalty on the weights. When
        the weight of one term rises, falls or starts afresh, the total moves with it. Nothing about the fit has changed at
        that step; another question is asked of the network.

    How it looks:
        Steps, ramps or a sawtooth with the period of the schedule, most clearly with cyclical annealing. The other
        terms, plotted by themselves, go on as before.

    How we test it:
        The logged terms must add up to the loss, to its last digit, the weight included. Then the event is split in two:
        what the weight does by itself (its change, times the term at its ordinary size), and what the network does (all
        the rest, its answer to the new weight among it). The weight must make at least 80 % of the event.

    What to do:
        Plot the terms one by one, and judge the training by those whose weight stays. If the total itself must be
        compared, compare equal phases of the schedule.

    References:
        Fu et al. 2019, arXiv 1903.10145 (cyclical annealing). Bowman et al. 2016, arXiv 1511.06349 (KL annealing).
    """

    family = "scale"
    aliases = ("loss-weight-schedule", "kl-annealing", "auxiliary-loss")
    rank = 58
    harmless = True
    title = "the plotted total contains a term whose weight has a schedule"

    def signature(self, seen: Observation) -> Suspicion | None:
        sum_ = seen.terms
        if sum_ is None:
            return None
        weighted = next((t for t in sum_.terms if t.weight is not None), None)
        if weighted is None:
            return None  # which term moves can be seen; that it does so by a schedule cannot
        from whyspike.terms import parts_of

        parts = {e.id: parts_of(sum_, weighted, e) for e in seen.events}
        ours = [e for e in seen.events if MOVES <= parts[e.id].get("weight", 0.0) <= 2 - MOVES]
        if not ours:
            return None
        clearest = max(ours, key=lambda e: (e.is_wave, e.last_step - e.step))
        made = parts[clearest.id]
        evidence = [
            Evidence(
                statement=f"the loss less {sum_.words}: largest difference",
                observed=f"{sum_.residual:.1g} over {len(sum_.step):,} steps",
                expected=f"at most {sum_.tolerance:.1g}, what rounding leaves",
            ),
            Evidence(
                statement=f"share of event {clearest.id} that the change of {weighted.weight} makes by itself",
                observed=percent(made["weight"]),
                expected=f"at least {percent(MOVES)}, if the schedule is the cause",
            ),
            Evidence(
                statement="shares of what the terms do otherwise",
                observed="; ".join(f"{name} {percent(share)}" for name, share in made.items() if name != "weight"),
                expected=f"within {percent(1 - MOVES)} of 0 together",
            ),
        ]
        return suspect(self, ours, evidence, identity=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        sum_ = seen.terms
        weighted = next((t for t in sum_.terms if t.weight is not None), None) if sum_ is not None else None
        if sum_ is None or weighted is None:
            return super().sentence(seen, events)
        return (
            f"The plotted loss is {sum_.words}, and it moves because {weighted.weight} does. The loss on the probe set contains "
            "the same weight; the terms by themselves show how well the network fits."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        cure = Cure(
            words="none is needed; plot the terms one by one",
            code={
                "torch": "log(reconstruction=reconstruction.item(), kl=kl.item(), beta=beta)",
                "keras": "self.kl_tracker.update_state(kl)   # a keras.metrics.Mean for each term",
            },
            applicability="safe",
        )
        return [ScratchCure(cure=cure)]
