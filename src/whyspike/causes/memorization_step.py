from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.staircase import CUT
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention


class MemorizationStep(Cause):
    """a network that remembers every sample after one look, so that the loss steps down where an epoch begins.

    What happens:
        A network of high capacity remembers a sample after it was trained on once. In the first epoch every sample is
        new; at the begin of the second all of them have been seen, and the training loss steps down from one batch to
        the next. It is not the network that improves at that step, but the samples that are known from then on. Most
        often this is seen when a large language model is fine-tuned on a small data set for three epochs.

    How it looks:
        A staircase: a step down at the begin of epochs 2, 3, …, and a flat or slightly rising loss inside the epochs.
        The loss on held-out data is flat or rises. Lower learning rates make the steps smaller.

    How we test it:
        The mean over the last tenth of an epoch is compared with that over the first tenth of the next, and with the
        same difference at places inside the epochs; a cut of the learning rate at the boundary, which would look the
        same, is ruled out. For the proof the steps around a boundary are replayed with the last batches before it and
        the first ones after it exchanged: the batches now come in the same place of the run with one look less or more.
        If memory is the cause, the low loss goes with the samples that were seen and not with the boundary. As a
        placebo the first batches of the epoch are exchanged with later ones, which have been seen as often.

    What to do:
        Usually nothing. It is memory, not divergence, and the loss of the second epoch is no longer an estimate of that
        on new data: look at held-out data, and stop after the epoch in which that was lowest. Fewer epochs, a lower
        learning rate, adapters, dropout or weight decay make the steps smaller.

    References:
        Howard & Whitaker, Can LLMs learn from a single example?, fast.ai 2023,
        https://www.fast.ai/posts/2023-09-04-learning-jumps/ · huggingface/transformers#18730 ·
        tatsu-lab/stanford_alpaca#236 · lm-sys/FastChat#2025
    """

    family = "order"
    aliases = ("epoch-staircase", "learning-jumps", "fine-tuning-staircase")
    needs = ("steps_per_epoch",)
    rank = 55
    measure = "dip"
    harmless = True
    one_event = True
    title = "the network remembers its samples: the loss steps down where an epoch begins"
    decides = (
        "compare the loss of 256 samples that were trained on once with that of 256 that never were; the first is lower"
    )

    def signature(self, seen: Observation) -> Suspicion | None:
        stairs = seen.curve.staircase if seen.curve is not None else None
        if stairs is None:
            return None
        events = [e for e in seen.events if e.kind == "level-shift" and e.step in stairs.steps]
        if not events:
            return None
        steps = "; ".join(
            f"{-drop:+.2f} nats at step {step} ({before:.3f} to {after:.3f})"
            for step, drop, (before, after) in zip(stairs.steps[:3], stairs.drops, stairs.levels, strict=False)
        )
        evidence = [
            Evidence(
                statement="step of the loss where an epoch begins, mean of a tenth of an epoch on either side",
                observed=steps,
                expected=f"within {2 * stairs.error:.3f} nats of 0, as at places inside the epochs",
            ),
            Evidence(
                statement="rise inside the epoch that each step begins",
                observed="; ".join(f"{rise:+.2f} nats" for rise in stairs.rises[:3]),
                expected="about 0 for memory; as much as the step for the sawtooth of samples that are forgotten again",
            ),
        ]
        if stairs.lr_ratio:
            evidence.append(
                Evidence(
                    statement="learning rate after the boundary over that before it",
                    observed="; ".join(f"x {ratio:.3g}" for ratio in stairs.lr_ratio[:3]),
                    expected=f"about x 1: a cut (below x {CUT:g}) would step the loss down as well",
                )
            )
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.exchanges import ExchangeAcrossBoundary

        return [ExchangeAcrossBoundary(seen.run, "batches not yet seen in this epoch's first places")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.exchanges import ExchangeWithLater

        return ExchangeWithLater(seen.run, "later batches of the epoch in its first places: seen as often")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        stairs = seen.curve.staircase if seen.curve is not None else None
        if stairs is None:
            return super().sentence(seen, events)
        before, after = stairs.levels[0]
        return (
            f"The loss steps down where an epoch begins (from {before:.3g} to {after:.3g} at step {stairs.steps[0]}) and is "
            "flat inside: every sample has been seen by then, and the network remembers it."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="none is needed; look at the loss on held-out data, and stop where it was lowest",
                    code={
                        "torch": "for epoch in range(1): ...   # one epoch, or as many as the held-out loss falls",
                        "hf": "TrainingArguments(num_train_epochs=1, eval_strategy='epoch', load_best_model_at_end=True)",
                        "keras": "keras.callbacks.EarlyStopping('val_loss', restore_best_weights=True)",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="a lower learning rate or weight decay makes the steps smaller",
                    code={
                        "torch": "torch.optim.AdamW(model.parameters(), lr=lr / 10, weight_decay=0.1)",
                        "hf": "TrainingArguments(learning_rate=2e-6, weight_decay=0.1)",
                        "keras": "keras.optimizers.AdamW(lr / 10, weight_decay=0.1)",
                    },
                    applicability="unsafe",
                )
            ),
        ]
