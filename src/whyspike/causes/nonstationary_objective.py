from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

NAMES = {
    "adversarial": "a generator and a discriminator, each the other's target",
    "reinforcement": "a policy and a value function on data that the policy itself makes",
}


class NonstationaryObjective(Cause):
    """an objective that moves by itself: a game of two networks, or a policy that makes its own data.

    What happens:
        In a GAN each network's loss is measured against the other, which learns as well; in reinforcement learning the
        data change with the policy. A loss that rises may mean that the opponent has got better. There is no function
        that the plotted loss is going down on.

    How it looks:
        Oscillations, spikes and shifts of level without a trend, often of one loss against the other's.

    How we test it:
        By what is logged: losses of two players, or of a policy and a value function. There is no experiment that could
        show such a loss to be wrong, because it promises nothing.

    What to do:
        Judge by something that does not move: samples, FID, the return of episodes, a fixed opponent.

    References:
        Goodfellow et al., Generative Adversarial Networks, 2014 · Lucic et al., Are GANs Created Equal?, 2018,
        arXiv 1711.10337 · Henderson et al., Deep Reinforcement Learning that Matters, 2018, arXiv 1709.06560
    """

    family = "control"
    aliases = ("gan-loss", "rl-loss")
    status = "preview"
    rank = 65
    harmless = True
    title = "the objective moves by itself: its loss is no measure of progress"
    decides = "a score that does not move, e.g. FID or the return of episodes; where it gets no worse, nothing happened"

    def signature(self, seen: Observation) -> Suspicion | None:
        kind = seen.run.facts.get("objective")
        players = seen.run.facts.get("players")
        events = [e for e in seen.events if e.kind != "non-finite"]
        if not isinstance(kind, str) or kind not in NAMES or not events:
            return None
        shown = ", ".join(map(str, players[:8])) if isinstance(players, (list, tuple)) else kind
        evidence = Evidence(
            statement="losses in the log that pull against each other",
            observed=shown,
            expected="one loss that is minimised",
        )
        return suspect(self, events, [evidence])

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        kind = str(seen.run.facts.get("objective"))
        what = f" ({NAMES[kind]})" if kind in NAMES else ""
        return (
            f"The objective of this training moves by itself{what}: its loss is no measure of progress, and may jump."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="judge by something that does not move: samples, FID, the return of episodes, a fixed opponent",
                    code={
                        "torch": "torchmetrics.image.fid.FrechetInceptionDistance()   # or the mean return of N episodes",
                        "keras": "callbacks=[...]   # that scores samples of a fixed noise after each epoch",
                    },
                    applicability="manual",
                )
            )
        ]
