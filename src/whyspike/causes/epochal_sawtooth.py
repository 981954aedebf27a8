from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.form import factor, number, percent
from whyspike.logsigns import lr_goes_with_the_epoch, of_log
from whyspike.types import Cure, Event, Evidence, Run, Suspicion, Trial

if TYPE_CHECKING:
    import numpy as np

    from whyspike.seams import Intervention

FLAT = 0.2  # of the amplitude: less than that and the network did not move with the loss (causes.md A1)
MOVES = 0.5  # more than that, and the network itself moves
VAGUE = 0.25  # a standard error of that share above which it says nothing
LEAST_RISE = 0.3  # epochs from the first quarter to the last: .75 for a reshuffle, 0 for a fixed order
SURE = 0.001  # p of a wave that is spoken of, as of one that is an event (periods.WAVE_ALPHA)
NOISY = 1.5  # times the wave, in nats: a single epoch's fall among the noise of its batches
EXCLUDED = "80 to 120 %: it has no part in it"

REVERSED, SWAPPED, REPLACED, CLIPPED = "reversed", "swapped", "with replacement", "clipped"


class EpochalSawtooth(Cause):
    """data reshuffled without replacement, of which the network forgets some between two visits.

    What happens:
        Every epoch visits every sample once, in a new order. A sample that comes up early in an epoch was last trained on
        about half an epoch ago, one that comes up at its end about one and a half (mean gaps of .63, .88, 1.13 and 1.38
        epochs in the four quarters). Whatever the network forgets in between makes the training loss rise through the
        epoch and drop at its boundary. The training metric is best in the first quarter because those samples were seen
        most recently, not because the network is better there. It grows with the learning rate, because more is memorised
        at every visit and more is overwritten after it.

    How it looks:
        The logged loss drops at every epoch's begin and rises until its end, in every epoch alike; training accuracy and
        hit rates mirror it. The loss on a fixed set of training samples is flat. The validation loss may dip the other
        way round: early in an epoch recently seen samples are fitted once more, which generalises worse. That dip is real,
        and it goes with the sawtooth.

    How we test it:
        From the recorded sample ids follows how long ago each sample was last trained on. At frozen weights, the loss of
        training samples is held against that gap: phase and weights are the same for all of them. Then whole epochs are
        replayed from their boundary in the order of the epoch before, shuffled only inside blocks of a tenth, two epochs
        long: as random, without replacement, but every gap is about one epoch. Beside it: samples drawn with replacement (two epochs), the
        order reversed, its quarters swapped (two dips per epoch), gradients clipped. The placebo is another shuffle. From
        all of them is taken what the batches cost by their samples alone, in networks that had not seen their order: which
        samples come when is chance, and makes up to a quarter of the wave of a dozen epochs.

    What to do:
        Nothing is broken. Log the loss on a fixed set of training samples, or compare equal phases of epochs. If the
        validation loss suffers, the network memorises: lower or decay the learning rate, or regularise. Gradient clipping
        and layer normalisation do not remove it (docs/benchmarks/third_question.md has the numbers).

    References:
        Liu & Ma 2024, arXiv 2410.10056 (the epochal sawtooth; with replacement none, reversed order amplifies).
        https://ai.stackexchange.com/q/40107 (the question; its accepted answer, divergence, is not it). The gaps are
        those of a random permutation: phase + U(0, 1).
    """

    family = "order"
    aliases = ("recency-sawtooth", "sawtooth", "epoch-sawtooth")
    needs = ("steps_per_epoch",)
    rank = 40
    harmless = True
    window = "epoch"
    measure = "rise"
    demo = "gru-recommender"
    title = "the training loss is lowest where the samples were seen most recently"
    decides = "train one epoch with RandomSampler(dataset, replacement=True); the teeth must go"

    def signature(self, seen: Observation) -> Suspicion | None:
        from whyspike.pattern import quarters

        run = seen.run
        waves = [e for e in seen.events if e.is_wave and e.period == run.steps_per_epoch]
        shape = quarters(run)
        events = [*waves, *_at_the_drop(seen, waves)]
        if not waves or shape is None or int(shape.argmin()) != 0 or int(shape.argmax()) != 3:
            return None
        evidence = [
            Evidence(
                statement="log loss in the four quarters of the epoch, about its trend",
                observed=f"{_signed(shape)} nats",
                expected="0 in each, if the epoch had no part in it",
            )
        ]
        fallen = _fallen(run)
        if fallen is not None:
            evidence.append(
                Evidence(
                    statement="loss of the last epoch over that of the second",
                    observed=factor(fallen),
                    expected="above 1 x if the training diverged, which is the usual explanation",
                )
            )
        refuted = self._gaps(seen, evidence) or self._curve(seen, evidence) or self._probe(seen, evidence)
        self._validation(seen, evidence)
        if refuted:
            return suspect(self, events, evidence, outcome="refuted", reason=refuted)
        if run.sample_ids is None and not of_log(run):
            reason = (
                "which samples were seen when is not known: iterate over rec.batches(loader) with a map-style dataset"
            )
            return suspect(self, events, evidence, outcome="untested", reason=reason)
        if of_log(run) and lr_goes_with_the_epoch(run):
            return suspect(
                self, events, evidence, outcome="refuted", reason="the learning rate has the period of the epoch, too"
            )
        return suspect(self, events, evidence)

    def _gaps(self, seen: Observation, evidence: list[Evidence]) -> str | None:
        """Add how long ago the samples of each quarter were trained on. Returns why that cannot be the cause."""
        law = _law(seen)
        if law is None:
            return None
        evidence.append(
            Evidence(
                statement="mean time since a sample was last trained on, in the four quarters of the epoch",
                observed=f"{', '.join(f'{g:.2f}' for g in law)} epochs",
                expected="1 in each if the order had no part in it; 0.63, 0.88, 1.13, 1.38 for a reshuffle",
            )
        )
        return (
            None if law[3] - law[0] >= LEAST_RISE else "samples of all quarters were last trained on equally long ago"
        )

    def _curve(self, seen: Observation, evidence: list[Evidence]) -> str | None:
        """Add how the loss depends on it at frozen weights. Returns why that cannot be the cause."""
        made = seen.gaps
        if made is None:
            return None
        evidence.append(
            Evidence(
                statement="loss of a training sample per epoch since it was last trained on, at frozen weights "
                f"({made.states} states of {made.clusters} epochs)",
                observed=f"{made.slope:+.3g} nats ({made.interval[0]:+.3g} to {made.interval[1]:+.3g})",
                expected="0 if the network forgot nothing in between",
            )
        )
        if not made.interval[0] > 0:
            return "at frozen weights the loss of a sample does not grow with the time since it was last trained on"
        evidence.append(
            Evidence(
                statement="share of the pattern of the quarters that these two predict",
                observed=percent(made.explained),
                expected="0 % if the time since the last visit had no part in it",
            )
        )
        return None

    def _probe(self, seen: Observation, evidence: list[Evidence]) -> str | None:
        """Add how much of the pattern fixed samples show. Returns why this cannot be the cause."""
        found = _probe_share(seen)
        if found is None:
            return None
        share, error = found
        evidence.append(
            Evidence(
                statement="share of the pattern in the loss on fixed training samples",
                observed=f"{percent(share)} (± {percent(2 * error)})",
                expected=f"100 % if the network got better and worse; below {percent(FLAT)} if it did not",
            )
        )
        return "the network itself gets better and worse with the logged loss" if share - 3 * error >= MOVES else None

    def _validation(self, seen: Observation, evidence: list[Evidence]) -> None:
        for name in _validation_losses(seen):
            found = _validation_wave(seen, name)
            if found is not None:
                evidence.append(
                    Evidence(
                        statement=f"{name} at the four quarters' ends, about its trend",
                        observed=f"{_signed(found[0])}",
                        expected="0 in each if the order did not reach it; highest in the first half if samples seen a short "
                        "while ago are fitted once more: then the dip of the validation is real",
                        p_value=found[1],
                    )
                )

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike import orders
        from whyspike.interventions import ClipGradNorm

        arms: list[Intervention] = [
            orders.BlockReshuffle(),
            orders.WithReplacement(),
            orders.ReversedOrder(),
            orders.QuartersSwapped(),
        ]
        norm = seen.median_gradient_norm()
        return arms if norm is None else [*arms, ClipGradNorm(norm, _clipped(norm), "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.orders import Reshuffle

        return Reshuffle()

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        from whyspike import orders

        rows = []
        for words, statement, expected in (
            (
                orders.WithReplacement.words,
                "samples drawn with replacement",
                "0 % or less: only the trend of the training is left",
            ),
            (orders.ReversedOrder.words, "the order reversed (gaps of 0 to 2 epochs)", "above 100 %"),
            (_clipped(seen.median_gradient_norm()), "gradients clipped", EXCLUDED),
        ):
            share = _share(trials, words)
            if share is not None:
                rows.append(
                    Evidence(
                        statement=f"what is left of the pattern with {statement}",
                        observed=percent(share),
                        expected=expected,
                    )
                )
        swapped = _quarters_in(trials, orders.QuartersSwapped.words)
        if swapped is not None:
            rows.append(
                Evidence(
                    statement="log loss in the four quarters with the quarters of the order swapped",
                    observed=f"{_signed(swapped)} nats",
                    expected="two dips, in the first and the third: gaps of 0.75, 1.25, 0.75, 1.25",
                )
            )
        return rows

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        law = _law(seen)
        ago = (
            f" a sample of the first quarter of an epoch was last trained on {law[0]:.2f} epochs ago on average, one of the "
            f"last quarter {law[3]:.2f},"
            if law is not None
            else " a sample of the first quarter of an epoch was last trained on not long ago, one of the last quarter long ago,"
        )
        slope = f" ({seen.gaps.slope:+.2g} nats per epoch)" if seen.gaps is not None else ""
        said = (
            "Your training loss is best in the first quarter of every epoch because of the order of the data, not because the "
            f"network is better there. Reshuffled without replacement,{ago} and the network forgets in between{slope}."
        )
        if any(_dips(seen, name) for name in _validation_losses(seen)):
            said += (
                " The validation loss that is worst at the same place is real: samples seen a short while ago are fitted once "
                "more."
            )
        return said

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        fixed = Cure(
            words="none is needed, neither clipping nor layer normalisation; to see how the training goes, log the loss on a fixed set of training samples",
            code={
                "torch": "probe = next(iter(DataLoader(dataset, batch_size=1024, shuffle=True)))  # once, then after every "
                "quarter:\nwith torch.no_grad():\n    model.eval(); log(loss_fn(model, probe)); model.train()",
                "keras": "x, y = x_train[:1024], y_train[:1024]  # in a callback: model.evaluate(x, y, verbose=0)",
                "hf": "Trainer(..., eval_dataset={'train_probe': train.select(range(1024)), 'validation': validation})",
                "lightning": "Trainer().fit(model, train_loader, val_dataloaders=[validation_loader, train_probe_loader])",
            },
            applicability="safe",
        )
        replacement = Cure(
            words="or draw with replacement, if the pattern itself must go; an epoch then leaves out a third of the samples",
            code={
                "torch": "DataLoader(dataset, batch_size=B, sampler=RandomSampler(dataset, replacement=True))",
                "keras": "dataset.repeat().shuffle(N).batch(B)  # repeat before shuffle blurs the boundary",
                "hf": "class T(Trainer):\n    def _get_train_sampler(self, *_):\n        return RandomSampler(self.train_dataset, "
                "replacement=True)",
                "lightning": "DataLoader(dataset, batch_size=B, sampler=RandomSampler(dataset, replacement=True))",
            },
            applicability="unsafe",
        )
        return [ScratchCure(cure=fixed), ScratchCure(cure=replacement, make=_with_replacement)]


def _at_the_drop(seen: Observation, waves: Sequence[Event]) -> list[Event]:
    """The single events that are nothing but the wave's own fall where an epoch begins, seen once more."""
    run, high = seen.run, max((e.reported or 1.0 for e in waves), default=1.0)
    if run.index is None or not run.steps_per_epoch:
        return []
    near = max(2, run.steps_per_epoch // 8)
    found = []
    for event in seen.events:
        if event.kind not in ("dip", "level-shift") or not event.reported or not high**-NOISY <= event.reported < 1:
            continue
        row = int(run.step.searchsorted(event.step))
        index = int(run.index[min(row, len(run) - 1)])
        if index < near or index >= run.steps_per_epoch - 2:
            found.append(event)
    return found


def _fallen(run: Run) -> float | None:
    """The median loss of the last epoch over that of the second; None where the epochs are not known."""
    import numpy as np

    if run.epoch is None or len(names := np.unique(run.epoch)) < 4:
        return None
    first, last = (float(np.nanmedian(run.loss[run.epoch == k])) for k in (names[1], names[-1]))
    return last / first if first > 0 and last > 0 else None


def _with_replacement() -> Intervention:
    from whyspike.orders import WithReplacement

    return WithReplacement()


def _clipped(norm: float | None) -> str:
    return f"gradients clipped to {number(norm)}, their median norm"


def _signed(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{v:+.3f}" for v in values)


def _law(seen: Observation) -> np.ndarray | None:
    from whyspike.gaps import quarter_gaps

    return quarter_gaps(seen.run)


def _probe_share(seen: Observation) -> tuple[float, float] | None:
    """How much of the loss's pattern the loss on fixed samples has, and its standard error; None where it says nothing.

    Measured at the frozen states of the gap curve where there is one, else by the probe of the record.
    """
    from whyspike.folding import folded
    from whyspike.gaps import share_of_pattern
    from whyspike.pattern import quarters

    probe, shape = seen.run.signals.get("probe"), quarters(seen.run)
    if seen.gaps is not None and seen.gaps.probe is not None:
        return seen.gaps.probe
    if probe is None or shape is None:
        return None
    found = share_of_pattern(folded(seen.run, 4, probe).table, shape)
    return found if found is not None and found[1] <= VAGUE else None


def _validation_losses(seen: Observation) -> list[str]:
    return [n for n in seen.run.signals if "val" in n.lower() and "loss" in n.lower() and "/" not in n]


def _validation_wave(seen: Observation, name: str) -> tuple[np.ndarray, float] | None:
    """A signal at the four quarters' ends, about its trend, and the p of its wave; None where it has too few values."""
    import numpy as np

    from whyspike.folding import folded
    from whyspike.waves import wave

    series = seen.run.signals[name]
    profile = folded(seen.run, 4, series).profile
    if not np.isfinite(profile).all():
        return None
    return profile - profile.mean(), wave(seen.run, series).p_value


def _dips(seen: Observation, name: str) -> bool:
    """Whether a validation loss is worse in the first half of the epoch than in the last quarter, beyond chance."""
    found = _validation_wave(seen, name)
    return found is not None and found[1] <= SURE and bool(found[0][:2].mean() > 0 > found[0][3])


def _share(trials: Sequence[Trial], words: str) -> float | None:
    """Mean excess with a change, over that of the unchanged epochs of the same pairs."""
    base = {t.pair: t.excess for t in trials if t.arm == "baseline"}
    changed = {t.pair: t.excess for t in trials if t.arm == "intervention" and t.words == words and t.pair in base}
    total = sum(base[k] for k in changed)
    return sum(changed.values()) / total if total > 0 else None


def _quarters_in(trials: Sequence[Trial], words: str) -> np.ndarray | None:
    """The mean log loss in the quarters of the replayed epochs, about its mean; None without such a trial."""
    import numpy as np

    made = [np.log(np.maximum(t.reported, 1e-300)) for t in trials if t.arm == "intervention" and t.words == words]
    if not made:
        return None
    found = np.mean([[np.nanmean(q) for q in np.array_split(y, 4)] for y in made], axis=0)
    return found - found.mean()
