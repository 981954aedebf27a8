from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Harm, Suspicion

MARK = "gradients-left"


class GradsNotZeroed(Cause):
    """gradients that are not zeroed: every update is made of those of all steps before.

    What happens:
        torch adds each backward pass to what is in `.grad`. Where `zero_grad()` is not called between two updates, an
        update goes along the sum of all gradients so far: it grows, points into the past, and overshoots like a momentum
        of 1. Where it is called once per epoch, all this begins anew with each epoch.

    How it looks:
        The gradient norm grows with the steps since the last zero_grad(), the loss swings or diverges.

    How we test it:
        At some steps a hook notes what is in `.grad` before the first backward pass, and the fresh gradient. Right before
        the update, `.grad` is a multiple of fresh plus old, to rounding, or of fresh alone. That is an identity. A
        gradient accumulation that is meant is none of it: it updates once, and is looked at from update to update.

    What to do:
        Call `optimizer.zero_grad(set_to_none=True)` once per update, before its first backward pass.

    References:
        https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html;
        https://stackoverflow.com/q/48001598 (why zero_grad() has to be called).
    """

    family = "optimizer"
    aliases = ("zero_grad", "gradients-accumulate", "missing zero_grad")
    needs = ()
    rank = 4
    title = "gradients are not zeroed between updates"

    def signature(self, seen: Observation) -> Suspicion | None:
        marks = seen.run.marked(MARK)
        if not marks:
            return None
        last = marks[-1].data
        looked, left = _count(last, "looked"), _count(last, "left")
        evidence = [
            Evidence(
                statement="updates whose gradient was, to rounding, the fresh one plus that of the update before",
                observed=f"{left} of {looked} that were looked at",
                expected=f"0 of {looked}",
            ),
            Evidence(
                statement="norm of the old gradient over that of the fresh one, largest of these",
                observed=f"{max(float(str(m.data['share'])) for m in marks):.3g}",
                expected="0",
            ),
        ]
        grown = _growth(seen)
        if grown is not None:
            evidence.append(
                Evidence(
                    statement="gradient norm at the end of the updates looked at, over that at their begin",
                    observed=f"x {grown:.3g}",
                    expected="about 1, or less as the loss falls",
                )
            )
        # Every update of the run is made of them, so that no event of it is another cause's before this is repaired.
        return suspect(self, seen.events, evidence, identity=True, alone=True, harm=_harm(seen))

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        marks = seen.run.marked(MARK)
        if not marks:
            return super().sentence(seen, events)
        left, looked = _count(marks[-1].data, "left"), _count(marks[-1].data, "looked")
        how = "never zeroed" if left == looked else "zeroed too rarely"
        return (
            f"Gradients are {how}: {left} of {looked} updates that were looked at went along the fresh gradient plus all "
            "that was left of those before."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="zero the gradients once per update, before its first backward pass",
                    code={
                        "torch": "optimizer.zero_grad(set_to_none=True)\nloss.backward()\noptimizer.step()",
                        "keras": "# fit() does it; in a train_step of your own on torch:\nself.zero_grad()\n"
                        "loss.backward()",
                        "lightning": "# automatic optimization does it; with automatic_optimization = False:\n"
                        "optimizer.zero_grad()\nself.manual_backward(loss)\noptimizer.step()",
                        "hf": "# Trainer does it; in a loop with accelerate:\noptimizer.zero_grad()\n"
                        "accelerator.backward(loss)\noptimizer.step()",
                    },
                    applicability="safe",
                )
            )
        ]


def _count(data: Mapping[str, Any], name: str) -> int:
    return int(data[name])


def _growth(seen: Observation) -> float | None:
    found = seen.run.signals.get("gradient_norm")
    if found is None:
        return None
    rows = found.step <= seen.run.marked(MARK)[-1].step
    values = found.value[rows]
    values = values[np.isfinite(values)]
    if len(values) < 8 or values[0] <= 0:
        return None
    k = max(1, len(values) // 8)
    return float(np.median(values[-k:]) / np.median(values[:k]))


def _harm(seen: Observation) -> Harm:
    """Damaging where the recorded probe rises; the replay, which zeroes the gradients, cannot tell."""
    probe = seen.run.signals.get("probe")
    if probe is None or not len(probe.value):
        return "damaging" if seen.events else "cosmetic"
    value = np.where(np.isfinite(probe.value), probe.value, np.inf)
    lowest = np.minimum.accumulate(value)
    return "damaging" if bool(np.sum(value > 1.1 * lowest) >= 3) else "cosmetic"
