from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.logsigns import suddenly_infinite
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.firstbad import Located
    from whyspike.numerics import Numerics
    from whyspike.seams import Intervention

OPERATIONS = ("log", "log2", "log10", "div", "pow", "reciprocal", "nll_loss", "mul")  # what fails on a 0 that was not 0
STUCK = 0.05  # of the samples: fewer may be rounding


class UnstableCrossEntropy(Cause):
    """a cross-entropy that takes the logarithm of probabilities, or a softmax of a softmax.

    What happens:
        In float32 a probability becomes exactly 0 once its logit is 104 below the largest one, and 1 - p becomes 0 once
        a sigmoid's logit is above 17. Its logarithm is infinite, its gradient NaN, and from the next step on the
        weights are. Where the probability is clipped instead, the loss of such a sample is stuck and has no gradient. A
        softmax of a softmax cannot tell the classes apart: the loss has a floor of ln(1 + (C - 1)/e).

    How it looks:
        NaN when the network is at its best and most certain. Or single losses stuck at -ln(clip): 16.118 (1e-7, Keras),
        27.631 (1e-12), 34.539 (1e-15), 100 (torch's BCELoss). Or a loss that stays above 1.461 for 10 classes.

    How we test it:
        The step is run again with every operation watched, until the first one that makes a value that is not finite
        from finite ones; the loss of that batch in float64 must be finite. Then the steps are replayed with the loss
        computed from the logits. Before training: the logits are scaled until the network is certain and wrong.

    What to do:
        Hand logits to a loss that takes logits.

    References:
        torch.nn.CrossEntropyLoss and BCEWithLogitsLoss, "more numerically stable". Blanchard, Higham & Higham 2021,
        Accurately computing the log-sum-exp and softmax functions. https://stats.stackexchange.com/q/303857.
    """

    family = "numerics"
    aliases = ("log-of-zero", "double-softmax", "from-logits", "nan-loss")
    rank = 5
    measure = "reported"
    title = "the loss takes the logarithm of probabilities instead of logits"
    decides = "print the smallest probability that goes into the logarithm; 0 is the cause"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        found = setup.numerics
        if found is None or not found.forms:
            return None
        if "softmax of softmax" in found.forms or "cross-entropy of sigmoid" in found.forms:
            return Finding(
                cause=self.id,
                text="the loss takes the softmax of what already are probabilities",
                observed=found.forms[0],
                expected="a loss on logits; as it is, the loss cannot fall below "
                + (f"{_floor(found.classes):.3f} for {found.classes} classes" if found.classes else "a floor"),
                cure="leave the softmax or sigmoid at the end of the network out",
            )
        certain = found.certain
        if certain is not None and not math.isfinite(certain):
            return Finding(
                cause=self.id,
                text="the loss takes the logarithm of probabilities, which are exactly 0 when the network is certain",
                observed=f"a loss of {certain:g} from a network that is certain and wrong",
                expected="a finite loss, as torch's losses on logits give",
                cure="hand logits to CrossEntropyLoss or BCEWithLogitsLoss",
            )
        return Note(
            id=self.id,
            text=f"the loss takes the logarithm of probabilities ({found.forms[0]}) and clips them: a sample that the "
            "network is certainly wrong about has no gradient; a loss on logits has no clip",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        found = seen.numerics
        if found is None:
            return self._of_log(seen)
        events, located = _located(seen)
        if located is not None:
            return self._not_finite(found, events, located)
        if "softmax of softmax" in found.forms or "cross-entropy of sigmoid" in found.forms:
            evidence = Evidence(
                statement="what the loss function is given",
                observed="probabilities, of which it takes the softmax once more",
                expected="logits"
                + (f"; as it is, it cannot fall below {_floor(found.classes):.3f}" if found.classes else ""),
            )
            return suspect(self, (), [evidence], identity=True, harm="damaging")
        if found.stuck is not None and found.stuck[1] >= STUCK:
            words, share = found.stuck
            evidence = Evidence(
                statement="samples whose own loss is stuck where probabilities are clipped",
                observed=f"{share:.0%}, at the value of {words}",
                expected="0 %; such a sample has no gradient",
            )
            return suspect(self, (), [evidence], identity=True, harm="damaging")
        return None

    def _of_log(self, seen: Observation) -> Suspicion | None:
        row = suddenly_infinite(seen.run)
        events = [e for e in seen.events if e.kind == "non-finite"]
        if row is None or not events:
            return None
        before = seen.run.loss[max(0, row - 4) : row]
        evidence = Evidence(
            statement=f"losses before step {int(seen.run.step[row])}, and the loss there",
            observed=f"{', '.join(f'{v:.3g}' for v in before)}; inf",
            expected="a rise over several steps where a training diverges; inf at once from the logarithm of 0",
        )
        return suspect(self, events[:1], [evidence])

    def _not_finite(self, found: Numerics, events: Sequence[Event], located: Located) -> Suspicion:
        exact = located.exact
        evidence = [
            Evidence(
                statement="the first value that is not finite",
                observed=located.words,
                expected="none; it was made of finite values",
            ),
            Evidence(
                statement="what the loss function does with probabilities",
                observed=", ".join(found.forms),
                expected="nothing: a loss on logits never has them",
            ),
        ]
        if exact is not None:
            evidence.append(
                Evidence(
                    statement="the loss of that batch in float64",
                    observed=f"{exact:.4g}",
                    expected="finite, if the probability was only rounded to 0",
                )
            )
        if exact is None or not math.isfinite(exact):
            return suspect(self, events, evidence)
        return suspect(self, events, evidence, identity=True)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm, StableForms

        if not _located(seen)[0]:
            return []
        norm = seen.median_gradient_norm() or 1.0
        return [StableForms(), ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "other samples in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        _, located = _located(seen) if events else ((), None)
        if located is not None:
            return (
                f"Your loss becomes {located.origin.value} at step {located.step}: it takes the logarithm of a probability "
                "that float32 has rounded to 0."
            )
        found = seen.numerics
        if found is None and events:
            return (
                f"Your loss is ordinary until it becomes inf at step {events[0].step}, from one step to the next: so does a "
                "loss that takes the logarithm of a probability which has become 0."
            )
        if found is not None and "softmax of softmax" in found.forms:
            floor = f", so that it cannot fall below {_floor(found.classes):.3f}" if found.classes else ""
            return f"Your loss takes the softmax of what already are probabilities{floor}."
        return "Your loss takes the logarithm of probabilities, which are 0 for what the network is certain of."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import StableForms

        return [
            ScratchCure(
                cure=Cure(
                    words="hand logits to a loss that takes logits, and leave the softmax or sigmoid out",
                    code={
                        "torch": "F.cross_entropy(logits, classes)   # or F.binary_cross_entropy_with_logits(logits, targets)",
                        "keras": "keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
                    },
                    applicability="safe",
                ),
                make=StableForms,
            )
        ]


def _located(seen: Observation) -> tuple[list[Event], Located | None]:
    """The events whose first value that is not finite was made of a probability, and that value's origin."""
    found = seen.numerics
    if found is None or not found.forms:
        return [], None
    ours = {
        k: v
        for k, v in found.located.items()
        if v.origin.place in ("forward", "backward")
        and v.origin.operation in OPERATIONS
        and v.origin.dtype == "float32"
    }
    events = [e for e in seen.events if e.id in ours]
    return events, ours[events[0].id] if events else None


def _floor(classes: int | None) -> float:
    """The smallest loss of a cross-entropy of probabilities, ln(1 + (C - 1)/e): lossform.double_softmax_floor."""
    return math.log1p(((classes or 2) - 1) / math.e)
