from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import comb
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

LEAST = 3  # updates; fewer have no rhythm
NEAR = 0.1  # of the way from one update to the next; events at random places fall there one time in ten
MOST = 0.8  # of an event's occurrences must lie there (as judge.REPRODUCED)


class TargetUpdate(Cause):
    """a target network that is replaced now and then.

    What happens:
        The loss is measured against the output of a second network that stands still (the target of Q-learning, a
        teacher). When its weights are replaced by the trained ones, the same predictions are suddenly wrong.

    How it looks:
        The loss jumps at every update of the target and falls until the next one: a sawtooth whose period is that of the
        updates.

    How we test it:
        Parameters that the optimizer does not train, but that change between two steps, are noted with the step. The
        steps around the updates are replayed with the target as it was: the jump goes. As a placebo the ordinary batch
        before the update is left out.

    What to do:
        Nothing: the method works like this. The loss of one stretch cannot be compared with that of another; look at the
        return, or at the loss against a fixed target. A target that moves a little with every step gives a smooth curve.

    References:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518 (a target network that is
        copied every C steps); Lillicrap et al. 2016, arXiv 1509.02971 (targets that move slowly).
    """

    family = "control"
    aliases = ("ema-teacher", "dqn", "target-network", "moving-target")
    rank = 30
    harmless = True
    measure = "jump"
    title = "the loss is measured against a target network, which was replaced"

    def signature(self, seen: Observation) -> Suspicion | None:
        updates = _updates(seen)
        if len(updates) < LEAST:
            return None
        events = [e for e in seen.events if _follows(seen, e, updates)]
        if not events:
            return None
        gaps = sorted(b - a for a, b in pairwise(updates))
        shares = _shares(events, seen, updates)
        near = sum(u <= NEAR for u in shares)
        n = len(shares)
        rows = [
            Evidence(
                statement="steps from one update of the target to the next",
                observed=f"{gaps[len(gaps) // 2]} ({gaps[0]} to {gaps[-1]}), {len(updates)} updates",
                expected="none, without a target",
            ),
            Evidence(
                statement="events in the first tenth of the way from one update to the next",
                observed=f"{near} of {n}",
                expected=f"{NEAR * n:.1f} by chance",
                p_value=sum(comb(n, k) * NEAR**k * (1 - NEAR) ** (n - k) for k in range(near, n + 1)),
            ),
        ]
        return suspect(self, events, rows)

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int]:
        return [s for s in _updates(seen) if 0 < s < len(seen.run)]

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import LeaveOut

        return [LeaveOut(("target",), "the target kept as it was")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import SkipBatch

        return SkipBatch("the ordinary batch before the update skipped", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        updates = _updates(seen)
        gaps = sorted(b - a for a, b in pairwise(updates))
        often = f" (every {gaps[len(gaps) // 2]} steps)" if gaps and gaps[0] == gaps[-1] else ""
        return (
            f"Your loss jumps when the target network is replaced{often}: the same predictions are measured against new "
            "targets, and it falls again as the network follows them."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="for a smooth curve, move the target a little with every step",
                    code={
                        "torch": "with torch.no_grad():\n"
                        "    for old, new in zip(target.parameters(), model.parameters()):\n"
                        "        old.lerp_(new, 0.005)",
                        "keras": "target.set_weights(\n"
                        "    [0.995 * old + 0.005 * new for old, new in zip(target.get_weights(), model.get_weights())]\n"
                        ")",
                    },
                    applicability="manual",
                )
            )
        ]


def _updates(seen: Observation) -> list[int]:
    """The steps before which the target was replaced; none where it moves with every step."""
    marks = seen.run.marked("target")
    if any(m.data.get("every_step") for m in marks):
        return []
    return [m.step for m in marks if m.step]


def _steps(seen: Observation, event: Event, updates: Sequence[int]) -> list[int]:
    from whyspike.periods import occurrences

    return [int(s) for s in occurrences(seen.run, event) if s >= updates[0] - 1]


def _share(seen: Observation, step: int, updates: Sequence[int]) -> float:
    """How far a step is on the way from one update to the next, 0 to 1. One step early is still at the update."""
    after = [u for u in updates if u > step + 1]
    last = max((u for u in updates if u <= step + 1), default=updates[0])
    end = after[0] if after else max(len(seen.run), step + 1)
    return max(0, step - last) / max(1, end - last)


def _shares(events: Sequence[Event], seen: Observation, updates: Sequence[int]) -> list[float]:
    return [_share(seen, s, updates) for e in events for s in _steps(seen, e, updates)]


def _follows(seen: Observation, event: Event, updates: Sequence[int]) -> bool:
    shares = _shares([event], seen, updates)
    if event.kind == "dip" or (event.reported is not None and event.reported < 1):
        return False
    return bool(shares) and sum(u <= NEAR for u in shares) >= MOST * len(shares)
