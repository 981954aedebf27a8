from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.lastbatch import last_batch
from whyspike.types import Cure, Event, Evidence, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

SMALL = 0.25  # of the nominal size (causes.md A3): gradient noise is then at least doubled, sqrt(B/b) >= 2
PLACE = 0.01  # chance of so many events at the last step, above which their place says nothing
HIDDEN = 1.1  # times the level: lower cannot be seen in the plot (the contract's line between cosmetic and damaging)
BETA2 = 0.9  # takes most of a given spike away, and makes more of them from scratch (benchmarks/second_question.py)
SCALE = 0.05  # an exponent further from 0 means that the size acts through the normaliser, not through noise


class SmallLastBatch(Cause):
    """an epoch's last batch that is much smaller than the others.

    What happens:
        The number of samples is no multiple of the batch size, so one step per epoch averages only a few samples. Its
        gradient is sqrt(B/b) times noisier, and the optimizer takes a full step on it.

    How it looks:
        Excursions of both signs at the last step of the epochs; after it the probe loss rises and recovers.

    How we test it:
        The steps are replayed with the same samples topped up to a full batch; as a placebo the ordinary batch before it
        gets other samples. The exponent of the loss in the batch size must be 0: otherwise the normaliser is the cause.

    What to do:
        Drop the last batch and keep shuffling, so that other samples are left out in every epoch; or weight its loss
        by b/B.

    References:
        torch.utils.data.DataLoader, drop_last. https://stackoverflow.com/q/47824598. Noise of a mean: sigma / sqrt(n).
    """

    family = "order"
    aliases = ("drop_last", "drop-last")
    needs = ("n_samples",)
    rank = 20
    title = "the last batch of each epoch is much smaller than the others"
    decides = "train one epoch with DataLoader(..., drop_last=True); the spike must go"

    def preflight(self, setup: Setup) -> Note | None:
        if not setup.last_batch or not setup.batch_size or setup.last_batch >= SMALL * setup.batch_size:
            return None
        return Note(
            id=self.id,
            text=f"the last batch of an epoch has {setup.last_batch} samples, the others {setup.batch_size}: its gradient is "
            f"{(setup.batch_size / setup.last_batch) ** 0.5:.2g} times noisier; drop_last=True leaves it out",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        last = last_batch(seen.run)
        events = list(seen.last_batch_events())
        if not events or last is None or last.size >= last.nominal / 2:
            return None
        evidence = [
            Evidence(
                statement="samples in the last batch of an epoch",
                observed=f"{last.size}",
                expected=f"{last.nominal}, as in the others; noise grows with the square root of their ratio, "
                f"{(last.nominal / last.size) ** 0.5:.2g}",
            )
        ]
        if seen.exponent is not None and abs(seen.exponent.alpha) > SCALE:
            return suspect(
                self,
                events,
                evidence,
                outcome="refuted",
                reason=f"the size acts through the loss's normaliser (exponent {seen.exponent.alpha:+.2f}), not through noise",
            )
        states = [e.state for e in events if e.state is not None]
        if seen.exponent is None and abs(last.slope) > 0.5 and last.interval[0] * last.interval[1] > 0:
            return None  # a height that follows the size is a normaliser's
        if states and max(states) < 1.1:
            return suspect(
                self,
                events,
                evidence,
                outcome="refuted",
                reason="the network does not move after it; its noise is only plotted",
            )
        if not states:
            chance = _chance_of_place(seen, events)
            if chance > PLACE:
                return None
            share = f"{len(events)} of {len(seen.events)} at the last step of an epoch of {seen.run.steps_per_epoch}"
            evidence.append(
                Evidence(
                    statement="where the events are",
                    observed="one that repeats there" if any(e.period for e in events) else share,
                    expected=f"so many by chance in fewer than {PLACE:.0%} of runs",
                    p_value=chance if chance > 0 else None,
                )
            )
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm, FillBatch, ReplaceSamples, RescaleLoss, SkipBatch
        from whyspike.optimizer_interventions import SetHyperparameters

        arms: list[Intervention] = [
            FillBatch(draw),
            SkipBatch(),
            RescaleLoss(lambda at: at.n_samples / at.batch_size, "its loss weighted by b/B"),
            ReplaceSamples(draw, "other samples in the small batch"),
        ]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms.append(ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm"))
        beta1 = _beta1(seen)
        if beta1 is not None:
            arms.append(SetHyperparameters({"betas": (beta1, BETA2)}, f"beta2 = {BETA2:g} throughout the replay"))
        return arms

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "other samples in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        last = last_batch(seen.run)
        if last is None:
            return super().sentence(seen, events)
        plotted = [e.reported for e in events if e.reported is not None]
        seen_there = (
            "At the end of every epoch the network gets worse for some steps, and the logged loss hardly shows it:"
            if plotted and max(plotted) < HIDDEN and any((e.state or 0.0) >= HIDDEN for e in events)
            else "Your loss spikes at the end of an epoch:"
        )
        return (
            f"{seen_there} its last batch has {last.size} sample{'' if last.size == 1 else 's'} instead of {last.nominal}, and "
            "the optimizer takes a full step on their noisy gradient."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import RescaleLoss, SkipBatch
        from whyspike.optimizer_interventions import SetHyperparameters

        beta1 = _beta1(seen)
        not_this = [
            ScratchCure(
                cure=Cure(
                    words=f"not this: beta2 = {BETA2:g} takes much of a given spike away, and makes others when a training "
                    "runs with it from the start",
                    code={
                        "torch": f"torch.optim.Adam(parameters, betas=({beta1}, {BETA2:g}))",
                        "keras": f"keras.optimizers.Adam(beta_1={beta1}, beta_2={BETA2:g})",
                        "hf": f"TrainingArguments(adam_beta1={beta1}, adam_beta2={BETA2:g})",
                    },
                    applicability="unsafe",
                ),
                make=lambda: SetHyperparameters({"betas": (beta1, BETA2)}, f"beta2 = {BETA2:g}"),
                expected="fails",
            )
        ]
        return [
            ScratchCure(
                cure=Cure(
                    words="drop the last batch; keep shuffle=True, otherwise the same samples are never trained on",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True, drop_last=True)",
                        "keras": "dataset.shuffle(N).batch(B, drop_remainder=True)",
                        "hf": "TrainingArguments(dataloader_drop_last=True)",
                    },
                    applicability="safe",
                ),
                make=lambda: SkipBatch("the last batch dropped", "partial"),
            ),
            ScratchCure(
                cure=Cure(
                    words="or weight the loss by the batch's share, so that every sample counts the same",
                    code={
                        "torch": "loss = loss_fn(model, batch) * (len(batch[0]) / B)",
                        "keras": "loss = loss * keras.ops.shape(y_pred)[0] / B",
                    },
                    applicability="safe",
                ),
                make=lambda: RescaleLoss(lambda at: at.n_samples / at.batch_size, "weighted by b/B", "partial"),
            ),
            *(not_this if beta1 is not None else []),
        ]


def _beta1(seen: Observation) -> float | None:
    """Of an optimizer of Adam's kind; None for another one."""
    optimizer = seen.run.facts.get("optimizer")
    defaults = optimizer.get("defaults") if isinstance(optimizer, dict) else None
    betas = defaults.get("betas") if isinstance(defaults, dict) else None
    return float(betas[0]) if isinstance(betas, (list, tuple)) and betas else None


def _chance_of_place(seen: Observation, events: Sequence[Event]) -> float:
    """The chance that as many of the events are at an epoch's last step, were they anywhere; 0 for one that repeats."""
    if any(e.period for e in events) or not seen.run.steps_per_epoch:
        return 0.0
    n, share = len(seen.events), 1.0 / seen.run.steps_per_epoch
    return sum(comb(n, k) * share**k * (1.0 - share) ** (n - k) for k in range(len(events), n + 1))
