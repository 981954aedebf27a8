from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion


class LengthGrouped(Cause):
    """batches that are sorted by the length of their samples.

    What happens:
        A sampler that groups by length puts samples of about the same length into one batch, so that little is padded.
        Hugging Face's shuffles the data, cuts them into mega-batches of 50 batches and sorts inside each, the longest
        first. A mean loss per token depends on the length of the text, so that it goes through the same ramp in every
        mega-batch.

    How it looks:
        An oscillation with a period of 50 steps (optimizer updates, with gradient accumulation too), whose phase begins
        anew in every epoch. The loss of a fixed set of samples does not follow it.

    How we test it:
        The losses of each epoch are folded over 50 steps, or over a quarter of an epoch where that is less, and the wave
        is compared with what cycles turned at random give.

    What to do:
        Nothing: it is the order of the lengths, not the network. To see the curve without it average over 50 steps, or
        leave the grouping out.

    References:
        transformers, trainer_pt_utils.get_length_grouped_indices · tloen/alpaca-lora, finetune.py ("group_by_length ...
        faster, but produces an odd training loss curve") · axolotl, documentation of group_by_length
    """

    family = "order"
    aliases = ("group-by-length", "bucketing")
    rank = 57
    harmless = True
    title = "the batches are sorted by length"
    decides = "train one epoch with group_by_length=False; the wave must go"

    def signature(self, seen: Observation) -> Suspicion | None:
        ramp = seen.curve.oscillation if seen.curve is not None else None
        if ramp is None:
            return None
        events = [e for e in seen.events if e.kind == "periodic" and e.period == ramp.period]
        if not events:
            return None
        evidence = [
            Evidence(
                statement=f"share of the loss's noise that a wave of {ramp.period} steps makes ({ramp.n_cycles} cycles)",
                observed=f"{100 * ramp.share:.0f} %",
                expected=f"0 %; below {100 * ramp.by_chance:.0f} % in 99 of 100 runs without one",
                p_value=ramp.p_value,
            ),
            Evidence(
                statement=f"correlation with the loss {ramp.period} steps before, in the same epoch",
                observed=f"{ramp.correlation:.2f}",
                expected="0 without grouping; near 1 where the lengths make the noise",
            ),
        ]
        return suspect(self, events, evidence)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        ramp = seen.curve.oscillation if seen.curve is not None else None
        if ramp is None:
            return super().sentence(seen, events)
        return (
            f"The loss oscillates with a period of {ramp.period} steps, the mega-batch of a sampler that groups by length: "
            "batches of long and of short samples follow each other."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="none is needed; average the plotted loss over 50 steps, or leave the grouping out",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True)   # without a sampler that sorts",
                        "hf": 'TrainingArguments(group_by_length=False)   # transformers 5: train_sampling_strategy="random"',
                    },
                    applicability="safe",
                )
            )
        ]
