from __future__ import annotations

import math
from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

NOTED = 0.5  # nats above ln C that are worth a word before training (causes.md F4)


class InitOutOfScale(Cause):
    """a network that is initialised out of scale, so that its first guesses are certain and wrong.

    What happens:
        A network that knows nothing should say so: its first cross-entropy is ln C. Where the last layer begins with large
        weights, it is certain of one class or another at random. The first updates only take that certainty back, with
        gradients that are large and tell nothing about the data.

    How it looks:
        A first loss far above ln C, and a huge first drop, which then dwarfs everything else in the plot. With Adam the
        second moment remembers these gradients for 1/(1 - beta2) steps.

    How we test it:
        The first batch is evaluated at the first weights: with the network's own logits, and with equal ones in their
        place. The second is ln C exactly for a plain cross-entropy, and takes weights, masks and factors of the loss into
        account. Before training it is the same test.

    What to do:
        Initialise the last layer small or with zeros; take its bias from the frequencies of the classes.

    References:
        He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010. OLMo 2, arXiv:2501.00656 (std .02). A. Karpathy, A Recipe
        for Training Neural Networks ("verify loss @ init"). https://stats.stackexchange.com/q/303857.
    """

    family = "network"
    aliases = ("initialization", "ln C", "first loss", "verify loss at init")
    rank = 35
    title = "the network begins out of scale: certain, and wrong"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        first = setup.first_loss
        if first is None or first.excess < NOTED:
            return None
        if not first.out_of_scale:
            return Note(
                id=self.id,
                text=f"the first loss is {first.loss:.3g}; that of a network that treats its {first.classes} classes alike is "
                f"{first.nothing:.3g}. A smaller first output costs nothing",
            )
        return Finding(
            cause=self.id,
            text="before any training the network is certain of what it cannot know",
            observed=f"a first loss of {first.loss:.3g}, of logits with a spread of {first.spread:.2g}",
            expected=f"about {first.nothing:.3g}, the loss of a network that treats its {first.classes} classes alike",
            cure="initialise the last layer small (nn.init.normal_(head.weight, std=0.02)) or with zeros",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        first = seen.first_loss
        if first is None or not first.out_of_scale:
            return None
        steps = _steps_above(seen, first.nothing)
        evidence = [
            Evidence(
                statement="loss of the first batch at the first weights",
                observed=f"{first.loss:.4g}",
                expected=f"{first.nothing:.4g}, of equal logits for the {first.classes} classes, or a little less or more",
            ),
            Evidence(
                statement="spread of the first logits (standard deviation within a sample)",
                observed=f"{first.spread:.2g}",
                expected="below 1: a spread of s costs about s^2 / 2 nats",
            ),
            Evidence(
                statement="steps until the loss is below that of a network that says nothing",
                observed="never" if steps is None else f"{steps:,}",
                expected="a few",
            ),
        ]
        early = [e for e in seen.events if steps is not None and e.step < steps]
        return suspect(self, early, evidence, identity=True, alone=True, harm="damaging")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        first = seen.first_loss
        if first is None:
            return super().sentence(seen, events)
        steps = _steps_above(seen, first.nothing)
        until = "and never comes below that" if steps is None else f"and is below that only after {steps:,} steps"
        return (
            f"Your first loss is {first.loss:.3g}, where a network that treats all {first.classes} classes alike has "
            f"{first.nothing:.3g}, {until}: the network begins out of scale."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ShrinkHead

        first = seen.first_loss
        spread = first.spread if first is not None and math.isfinite(first.spread) else 1.0
        return [
            ScratchCure(
                cure=Cure(
                    words="initialise the last layer small, so that the first guesses are about equal",
                    code={
                        "torch": "nn.init.normal_(model.head.weight, std=0.02); nn.init.zeros_(model.head.bias)",
                        "keras": "keras.layers.Dense(C, kernel_initializer=keras.initializers.RandomNormal(stddev=0.02))",
                        "hf": "AutoConfig.from_pretrained(name, initializer_range=0.02)",
                    },
                    applicability="safe",
                ),
                make=lambda: ShrinkHead(0.1 / max(spread, 0.1)),
            )
        ]


def _steps_above(seen: Observation, level: float) -> int | None:
    """The first step of three in a row whose loss is below a level; None where there is none."""
    loss = seen.run.loss
    below = loss < level
    found = (below[:-2] & below[1:-1] & below[2:]).nonzero()[0] if len(loss) > 2 else []
    return int(found[0]) if len(found) else None
