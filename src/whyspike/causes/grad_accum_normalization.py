from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

SPLIT = 0.01  # relative: a loss that changes by more than that when its samples are split otherwise; rounding is 1e-6
MEAN = 0.05  # of the exponent and of gamma: a loss within it is a mean over something (benchmarks/exponent.py)
SHARE = 0.5  # of an event's height, in logarithms, that the split must explain


class GradAccumNormalization(Cause):
    """micro-batches that count the same, whatever they hold.

    What happens:
        The loss is a mean over tokens (boxes, positives), and gradient accumulation takes the mean of the micro-batches'
        means. A micro-batch of few tokens counts as much as one of many: its tokens weigh more in loss and gradient than
        they would in one large batch.

    How it looks:
        Spikes, or dips, on steps one of whose micro-batches holds few tokens, if those are harder, or easier, than the
        others.

    How we test it:
        The samples of the step are taken as one batch on the frozen network. That loss is the mean of the micro-losses
        weighted by their tokens, exactly; the mean of means misses it by Cov(n, L)/mean(n). Then the steps are replayed with
        each micro-loss weighted by its tokens; as a placebo the loss of the ordinary step before gets as large a factor.

    What to do:
        Sum over the tokens of every micro-batch, and divide by the tokens of the whole step (of all workers).

    References:
        https://unsloth.ai/blog/gradient (2024); https://github.com/huggingface/transformers/pull/34191. The identity is
        algebra: the weighted mean minus the plain one is the covariance over the mean weight.
    """

    family = "scale"
    aliases = ("mean of means", "num_items_in_batch", "gradient-accumulation-bug")
    rank = 11
    measure = "onset"
    title = "gradient accumulation takes the mean of means, whatever the micro-batches hold"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        if setup.split is None or setup.accumulate < 2:
            return None
        means, whole = setup.split
        power = setup.exponent
        if power is not None and max(abs(power.alpha), abs(power.gamma)) > MEAN:
            return None  # a sum, or a loss that compares samples: it depends on the batch size anyway
        if abs(means - whole) <= SPLIT * abs(whole):
            return None
        return Finding(
            cause=self.id,
            text=f"the samples of one step give another loss as {setup.accumulate} micro-batches than as one batch",
            observed=f"{means:.4g}, the mean of {setup.accumulate} means",
            expected=f"{whole:.4g}, all samples at once",
            cure="divide the sum over all tokens of the step by their number",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        made = seen.accumulation
        if made is None or made.unit is None or made.misfit is None or not made.differs:
            return None
        events = [e for e in seen.events if e.kind in ("spike", "periodic", "dip") and _explains(seen, e)]
        if not events:
            return None
        shown = [s for e in events for s in made.splits if _inside(seen, e, s.step)][:5]
        rows = [
            Evidence(
                statement=f"loss of a step's samples as one batch, against the micro-losses weighted by {made.unit}",
                observed=f"relative difference {made.misfit:.1g}",
                expected="0 to rounding, if the loss is a mean over these",
            ),
            Evidence(
                statement=f"{made.unit} in the micro-batches of the first such step",
                observed=", ".join(f"{n:g}" for n in shown[0].units),
                expected="as many in each",
            ),
            Evidence(
                statement="the mean of the micro-losses over that of all units, at those steps",
                observed=", ".join(f"x {s.mean_of_means / s.weighted:.3g}" for s in shown),
                expected="x 1",
            ),
            Evidence(
                statement="what the mean of means misses by, against -Cov(n, L) / mean(n)",
                observed=", ".join(f"{s.mean_of_means - s.whole:+.4g}" for s in shown),
                expected=", ".join(f"{-s.covariance:+.4g}" for s in shown),
            ),
        ]
        return suspect(self, events, rows, identity=True)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import WeightMicroLosses

        made = seen.accumulation
        unit = made.unit if made is not None and made.unit is not None else "samples"
        counts = {s.step: s.units for s in made.splits} | dict(made.counts) if made is not None else {}
        # An episode may have several such steps; where micro-batches hold as much as each other, nothing changes.
        return [WeightMicroLosses(counts, f"micro-losses weighted by {unit}", "onward")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RescaleLoss

        made = seen.accumulation
        ratios = [abs(log(s.weighted / s.mean_of_means)) for s in made.splits] if made is not None else []
        factor = exp(-float(np.median(ratios))) if ratios else 1.0
        return RescaleLoss(lambda at: factor, "that factor on the ordinary step before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        made = seen.accumulation
        unit = (made.unit or "tokens") if made is not None else "tokens"
        return (
            "Your loss spikes on steps one of whose micro-batches holds little: each micro-batch counts the same, whatever "
            f"the number of {unit} in it."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="sum over the tokens of every micro-batch, and divide by those of the whole step",
                    code={
                        "torch": "n = sum((labels != -100).sum() for _, labels in window)   # all micro-batches of the step\n"
                        "for inputs, labels in window:\n"
                        "    loss = F.cross_entropy(\n"
                        '        model(inputs).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"\n'
                        "    )\n"
                        "    (loss / n).backward()",
                        "keras": "loss = keras.ops.sum(token_losses) / tokens_of_the_step   # in a train_step of your own",
                        "hf": "# transformers >= 4.46 tells the step's count only to a forward that takes **kwargs\n"
                        "def forward(self, input_ids, labels=None, num_items_in_batch=None, **kwargs): ...\n"
                        "# or to Trainer(compute_loss_func=...); several GPUs: average_tokens_across_devices=True",
                        "lightning": "self.manual_backward(loss_sum / tokens_of_the_step)   # automatic_optimization = False",
                    },
                    applicability="safe",
                )
            )
        ]


def _inside(seen: Observation, event: Event, step: int) -> bool:
    from whyspike.periods import occurrences

    return step in {int(s) for s in occurrences(seen.run, event)}


def _explains(seen: Observation, event: Event) -> bool:
    """Whether the split makes most of an event: half of its height in logarithms."""
    from whyspike.periods import occurrences

    if seen.accumulation is None or event.reported is None:
        return False
    return seen.accumulation.share_of(event.reported, {int(s) for s in occurrences(seen.run, event)}) >= SHARE
