from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Mark, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

LATE, SCALED = "clip-late", "clip-scaled"
SURELY = 0.9  # of the clippings looked at came too late; the first ones are seen before the order is known


class ClipMisuse(Cause):
    """a gradient clipping that does not act: it comes after the update, or before the gradients are unscaled.

    What happens:
        `clip_grad_norm_` is called where it changes nothing that matters. After `optimizer.step()` the update is made
        already. With a GradScaler and before `scaler.unscale_()`, the limit is held against gradients that are some
        thousand times too large, so that every step is cut down to next to nothing. What the clipping was meant to
        catch goes through, or the training stands still.

    How it looks:
        The gradient norm is far above the limit at each spike, and the spikes are those of a training without clipping.

    How we test it:
        The recorder sees both the call of the clipping and the update, and in which order they come; that alone proves
        it. Where the loss spikes, the steps are replayed with the same clipping before the update: the spikes must go. As
        a placebo the ordinary step before the spike is clipped as hard instead.
        Where nothing is clipped at all, that is no cause but an amplifier: what makes the gradient large is named, and
        clipping is among its cures.

    What to do:
        Clip between backward and step; with a GradScaler after `scaler.unscale_(optimizer)`.

    References:
        Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063 (clipping). PyTorch, automatic mixed precision examples: gradients
        have to be unscaled before they are clipped.
    """

    family = "optimizer"
    aliases = ("clip-too-late", "gradient-clipping", "clip before unscale", "no-gradient-clipping")
    needs = ()
    rank = 6
    measure = "state"
    title = "the gradient clipping does not act on the update"

    def signature(self, seen: Observation) -> Suspicion | None:
        late, scaled = _last(seen, LATE), _last(seen, SCALED)
        mark = late or scaled
        if mark is None:
            return None
        looked, count = int(mark.data["looked"]), int(mark.data["seen"])
        if count < SURELY * looked:
            return None
        limit = float(mark.data["limit"])
        what = "after the update of its step" if late else "on gradients that were still scaled"
        evidence = [
            Evidence(
                statement=f"calls of clip_grad_norm_ that came {what}",
                observed=f"{count:,} of {looked:,}",
                expected=f"0 of {looked:,}",
            )
        ]
        if scaled and not late:
            scale = float(mark.data["scale"])
            evidence.append(
                Evidence(
                    statement="what the gradients were clipped to, once they are unscaled",
                    observed=f"{limit / scale:.2g} (the limit {limit:g} over a scale of {scale:g})",
                    expected=f"{limit:g}",
                )
            )
            return suspect(self, (), evidence, identity=True, alone=True, harm="damaging")
        norms = seen.run.signals.get("gradient_norm")
        events = [e for e in seen.events if e.kind in ("spike", "divergence", "level-shift") and not e.period]
        if norms is not None and len(norms.value):
            above = float(np.mean(norms.value > limit))
            evidence.append(
                Evidence(
                    statement=f"updates whose gradient norm was above the limit of {limit:g}",
                    observed=f"{above:.0%} of those measured, up to {np.nanmax(norms.value):.3g}",
                    expected="none: the clipping is there to prevent it",
                )
            )
        return suspect(self, events, evidence, identity=True, alone=True)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm

        mark = _last(seen, LATE)
        if mark is None:
            return ()
        limit = float(mark.data["limit"])
        return [ClipGradNorm(limit, f"the same clipping (norm {limit:g}) before the update", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ClipGradNorm

        mark = _last(seen, LATE)
        if mark is None:
            return None
        limit = float(mark.data["limit"])
        return ClipGradNorm(limit, f"the ordinary step before it clipped (norm {limit:g}) instead", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        mark = _last(seen, LATE)
        if mark is not None:
            return (
                f"You clip the gradient to {float(mark.data['limit']):g}, but after the update is made: the clipping "
                "changes nothing."
            )
        mark = _last(seen, SCALED)
        if mark is not None:
            return (
                f"You clip gradients that the GradScaler has not unscaled yet: at a scale of {float(mark.data['scale']):g} "
                f"a limit of {float(mark.data['limit']):g} cuts nearly every step down."
            )
        return super().sentence(seen, events)

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        mark = _last(seen, LATE) or _last(seen, SCALED)
        limit = float(mark.data["limit"]) if mark is not None else 1.0
        return [
            ScratchCure(
                cure=Cure(
                    words="clip between backward and step, and after unscaling",
                    code={
                        "torch": "loss.backward()\n"
                        f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:g})\noptimizer.step()\n"
                        "# with a GradScaler:\nscaler.scale(loss).backward()\nscaler.unscale_(optimizer)\n"
                        f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:g})\nscaler.step(optimizer)",
                        "keras": f"keras.optimizers.SGD(lr, global_clipnorm={limit:g})",
                        "lightning": f"Trainer(gradient_clip_val={limit:g})",
                        "hf": f"TrainingArguments(max_grad_norm={limit:g})",
                    },
                    applicability="safe",
                )
            )
        ]


def _last(seen: Observation, name: str) -> Mark | None:
    marks = seen.run.marked(name)
    return marks[-1] if marks else None
