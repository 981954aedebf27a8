from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup
from whyspike.lastbatch import EXACT, last_batch, suspicion_of_power
from whyspike.types import Cure, Event, Evidence, Finding, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.seams import Intervention


class DoubleAveragedLoss(Cause):
    """a loss that is divided by the batch size twice.

    What happens:
        The loss is already an average (over boxes, positives or tokens) when something divides it by the batch size
        again. Loss and gradient are then inversely proportional to the number of samples. The last batch of an epoch
        is often smaller than the others: with 2 samples instead of 32 it counts 16 times, and an optimizer with
        momentum carries that gradient into the steps that follow.

    How it looks:
        One spike per epoch, always on the last batch, of the same height: nominal size over last size. The learning
        rate that works is larger than usual by the factor of the batch size.

    How we test it:
        A quarter of a batch is duplicated once, twice and four times on the frozen network; the loss of a correct
        mean stays, that of a double average falls as 1/n (exponent -1). Then the steps around the spikes are replayed
        with the loss of the last batch multiplied by b/B; as a placebo the ordinary batch before it gets that factor.

    What to do:
        Divide once. Multiplying by the nominal batch size changes the unit and cures nothing. Dropping the last batch
        hides the fault: the learning rate still depends on the batch size. Clipping protects the weights; the spike
        in the plot stays.

    References:
        https://stackoverflow.com/q/47824598 and https://github.com/pierluigiferrari/ssd_keras/issues/8. Keras 3:
        `keras/src/losses/loss.py`, reduce_values. The two-parameter probe: benchmarks/exponent.py.
    """

    family = "scale"
    aliases = ("averaged-twice",)
    needs = ("n_samples",)
    rank = 10
    title = "the loss is divided by the batch size twice"
    decides = (
        "compute the loss of one batch, and of that batch twice over; a mean is the same, a loss divided twice is half"
    )

    def preflight(self, setup: Setup) -> Finding | None:
        if setup.exponent is None or abs(setup.exponent.alpha + 1) > EXACT:
            return None
        return Finding(
            cause=self.id,
            text="the loss falls as one over the batch size: something divides it by the batch size once too often",
            observed=f"exponent {setup.exponent.alpha:+.3f}",
            expected="0 (a mean)",
            cure="return the mean over samples (or boxes, tokens) once; multiply by the batch's own size to undo it",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        events = [e for e in seen.last_batch_events() if e.kind != "dip"]
        return suspicion_of_power(self, seen, events, -1, "a mean divided by the batch size again")

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import (
            ClipGradNorm,
            FillBatch,
            ReplaceSamples,
            RescaleLoss,
            ScaleLr,
            SkipBatch,
            ZeroMomentum,
        )

        arms: list[Intervention] = [
            RescaleLoss(lambda at: at.n_samples / at.batch_size, "that batch's loss multiplied by b/B (divided once)"),
            FillBatch(draw),
            SkipBatch(),
            ReplaceSamples(draw, "other samples in the small batch"),
        ]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms += [
                ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm"),
                ClipGradNorm(norm, f"each tensor's gradient clipped to {norm:.2g}", per_tensor=True),
            ]
        return [
            *arms,
            ZeroMomentum(),
            ScaleLr(0.1, "learning rate / 10 throughout (the ceiling: it removes anything)", "always"),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RescaleLoss

        last = last_batch(seen.run)
        if last is None:
            return None
        share = last.size / last.nominal
        return RescaleLoss(lambda at: share, "the same factor on the ordinary batch before it", "control")

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        def heights(words: str) -> dict[int, float]:
            """Of each pair: the plotted loss of the event's step over its level before."""
            found = [t for t in trials if words in t.words and t.arm != "placebo"]
            return {t.pair: t.reported[t.event_step - t.first_step] / t.reported_reference for t in found}

        base, clipped = heights("as it was"), heights("the median norm")
        shared = sorted(base.keys() & clipped.keys())
        if not shared:
            return ()
        before, after = median(base[k] for k in shared), median(clipped[k] for k in shared)
        return (
            Evidence(
                statement="height of the plotted spike when the gradient is clipped",
                observed=f"x {after:.3g}, x {before:.3g} without clipping",
                expected="the same: clipping changes the update, the plotted loss is computed before it",
            ),
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        last = last_batch(seen.run)
        if last is None:
            return super().sentence(seen, events)
        return (
            f"Your loss spikes once an epoch, on the last batch: it has {last.size} samples instead of {last.nominal}, "
            f"and because the loss is divided by the batch size twice, it counts {last.nominal / last.size:.3g} times."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ClipGradNorm, RescaleLoss, SkipBatch

        last = last_batch(seen.run)
        nominal = last.nominal if last else (seen.run.batch_size or 1)
        norm = seen.median_gradient_norm()
        cures = [
            ScratchCure(
                cure=Cure(
                    words=f"divide once: multiply the loss by the batch's own size, and divide the learning rate by {nominal} "
                    "to keep the step",
                    code={
                        "torch": f"loss = loss_fn(model, batch) * len(batch[0])   # and lr / {nominal}",
                        "keras": f"return loss * keras.ops.cast(keras.ops.shape(y_pred)[0], loss.dtype)   # and lr / {nominal}",
                    },
                    applicability="safe",
                ),
                make=lambda: RescaleLoss(lambda at: at.n_samples / at.batch_size, "divided once", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words=f"or leave the second division out where it is made: a reduction that sums; learning rate / {nominal}",
                    code={
                        "torch": 'total = F.cross_entropy(scores, classes, reduction="sum")\nreturn total / n_boxes   # and nothing else',
                        "keras": 'keras.losses.Loss(reduction="sum")   # for a loss already divided by its boxes',
                    },
                    applicability="safe",
                ),
                make=lambda: RescaleLoss(lambda at: at.n_samples / at.batch_size, "divided once", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words="drop the last batch: it hides the fault, the learning rate still depends on the batch size; keep "
                    "shuffle=True, otherwise the same samples are never trained on",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True, drop_last=True)",
                        "keras": "dataset.shuffle(N).batch(B, drop_remainder=True)",
                        "hf": "TrainingArguments(dataloader_drop_last=True)",
                    },
                    applicability="unsafe",
                ),
                make=lambda: SkipBatch("the last batch dropped", "partial"),
            ),
        ]
        if norm is not None:
            cures.append(
                ScratchCure(
                    cure=Cure(
                        words="clip the gradient: it protects the weights, the spike in the plotted loss stays",
                        code={
                            "torch": f"torch.nn.utils.clip_grad_norm_(model.parameters(), {norm:.2g})   # before optimizer.step()",
                            "keras": f"keras.optimizers.SGD(..., global_clipnorm={norm:.2g})   # clipnorm=: each tensor by itself",
                            "lightning": f"Trainer(gradient_clip_val={norm:.2g})",
                            "hf": f"TrainingArguments(max_grad_norm={norm:.2g})",
                        },
                        applicability="unsafe",
                    ),
                    make=lambda: ClipGradNorm(norm, "clipped in every step", "always"),
                    expected="protects",
                )
            )
        cures.append(
            ScratchCure(
                cure=Cure(
                    words=f"not this: multiplying by the nominal size {nominal} changes the unit of the loss and cures nothing",
                    code={
                        "torch": f"loss = loss_fn(model, batch) * {nominal}   # still 1/b on a batch of b samples",
                        "keras": f"return loss * {nominal}   # still 1/b on a batch of b samples",
                    },
                    applicability="unsafe",
                ),
                # A constant factor on the loss and the same factor off the learning rate: with SGD the very same updates.
                make=lambda: RescaleLoss(lambda at: 1.0, "multiplied by the nominal size, lr divided by it", "always"),
                expected="fails",
            )
        )
        return cures
