from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.firstbad import Located
    from whyspike.seams import Intervention

LARGEST = {"float16": "65,504", "bfloat16": "3.4e38"}
APART = 1e-2  # relative, of the first loss in low precision to that in float32 (causes.md E2); 1e-4 to 1e-3 is rounding


class LowPrecisionOverflow(Cause):
    """an overflow of half precision: a number above 65,504, the largest of float16.

    What happens:
        Under autocast, or after .half(), activations are float16. One that is above 65,504 becomes infinite, the layer
        after it makes NaN of that, and from the next update on the weights are NaN. In float32 or bfloat16, whose largest
        number is 3.4e38, the same step is an ordinary one.

    How it looks:
        The loss is NaN at one step, and stays so; with a GradScaler that step is skipped, and the next such sample gives
        another NaN.

    How we test it:
        The step is run again with every operation watched, until the first one that makes an infinity of finite numbers; it
        must be one in half precision, and the loss of that batch in float64 must be finite. Then the steps are replayed
        with autocast and casts left out.

    What to do:
        bfloat16 where the hardware has it; else keep the layer that overflows in float32, or bring its input into scale.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740. torch.amp, autocast op reference. GLM-130B,
        arXiv:2210.02414 (collapses of float16 training).
    """

    family = "numerics"
    aliases = ("fp16-overflow", "bf16-precision", "half-precision", "mixed-precision")
    rank = 6
    measure = "reported"
    title = "half precision overflows"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        found = setup.precision
        if found is None:
            return None
        low, full = found
        if math.isfinite(full) and not math.isfinite(low):
            return Finding(
                cause=self.id,
                text="a batch overflows in half precision: one of the first, or that of the samples with the largest numbers",
                observed=f"a loss of {low:g}",
                expected=f"{full:.4g}, as in float32",
                cure="use bfloat16, or bring inputs into scale",
            )
        apart = abs(low - full) / abs(full) if full else 0.0
        if apart < APART:
            return None
        return Note(
            id=self.id,
            text=f"the loss of the first batches is {low:.4g} in half precision and {full:.4g} in float32, {apart:.1%} apart",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        events, located = _located(seen)
        if located is None:
            return None
        origin = located.origin
        exact = located.exact
        evidence = [
            Evidence(
                statement="the first value that is not finite",
                observed=f"{origin.value} at step {located.step}, made by {origin.words}, in {origin.dtype}"
                + located.of_samples,
                expected=f"none; it was made of finite values, and {origin.dtype} ends at {LARGEST[origin.dtype]}",
            ),
            Evidence(
                statement="the loss of that batch in float64",
                observed="it could not be had" if exact is None else f"{exact:.4g}",
                expected="finite, if only the precision is to blame",
            ),
        ]
        certain = exact is not None and math.isfinite(exact)
        return suspect(self, events, evidence, identity=certain)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm
        from whyspike.precision import InFullPrecision

        if not _located(seen)[0]:
            return []
        norm = seen.median_gradient_norm() or 1.0
        return [InFullPrecision(), ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "other samples in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        _, located = _located(seen)
        if located is None:
            return super().sentence(seen, events)
        origin = located.origin
        exact = f"; in float64 that batch has a loss of {located.exact:.3g}" if located.exact is not None else ""
        return (
            f"Your loss becomes {origin.value} at step {located.step}: {origin.words}, goes beyond "
            f"{LARGEST[origin.dtype]}, the largest number of {origin.dtype}{exact}."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.precision import InFullPrecision

        return [
            ScratchCure(
                cure=Cure(
                    words="compute in bfloat16, whose numbers go as far as those of float32; or in float32 where it overflows",
                    code={
                        "torch": 'with torch.autocast("cuda", dtype=torch.bfloat16): ...\n'
                        '# or, around one layer:\nwith torch.autocast("cuda", enabled=False):\n    x = layer(x.float())',
                        "keras": 'keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                        "hf": "TrainingArguments(..., bf16=True, fp16=False)",
                        "lightning": 'Trainer(..., precision="bf16-mixed")',
                    },
                    applicability="safe",
                ),
                make=InFullPrecision,
            )
        ]


def _located(seen: Observation) -> tuple[list[Event], Located | None]:
    """The events whose first value that is not finite was made in half precision, and that value's origin."""
    found = seen.numerics
    if found is None:
        return [], None
    ours = {
        k: v
        for k, v in found.located.items()
        if v.origin.place in ("forward", "backward") and v.origin.dtype in LARGEST
    }
    events = [e for e in seen.events if e.id in ours]
    return events, ours[events[0].id] if events else None
