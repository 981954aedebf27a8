from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.form import count, percent
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.sampling import Sampling
    from whyspike.seams import Intervention

TURNED = "the same order, begun half way"


class FixedOrder(Cause):
    """data that come in the same order in every epoch.

    What happens:
        The loader gives the same batches in the same order in every pass: it does not shuffle, or it shuffles with the
        same seed again (a `DistributedSampler` without `set_epoch`). What is luck of the draw in the first pass comes
        back in every other. Where the order is sorted as well, by class or by source, the network forgets one while it
        learns the next, and the loss swings.

    How it looks:
        The same wiggles in every epoch, at the same places. In a long run nobody sees them; sorted data make waves that
        everybody sees.

    How we test it:
        Equal sequences of sample ids are a proof. Whole epochs are then replayed from their boundary with the samples
        shuffled: the pattern must go. As a placebo they are shuffled inside each batch, which moves as many of them.
        With the same order begun half way, the pattern must come half an epoch later: it goes with the data, not with the
        clock. On a log alone: the correlation of the loss's noise with itself at every lag, against the highest that
        shuffled noise reaches at any lag. It also tells the length of a pass to the step, which a log often does not say,
        or says wrongly.

    What to do:
        Shuffle, anew in every epoch.

    References:
        BVLC/caffe#1445 · pytorch/pytorch#31771 and the warning in the documentation of DistributedSampler ·
        jingyaogong/minimind#503 · k2-fsa/icefall#1676
    """

    family = "order"
    aliases = ("sorted-data", "missing-set-epoch", "no-shuffle")
    rank = 56
    window = "epoch"
    measure = "pattern"
    title = "the data come in the same order in every pass"
    decides = (
        "train one epoch with DataLoader(..., shuffle=True), or with sampler.set_epoch(epoch); the pattern must go"
    )

    def preflight(self, setup: Setup) -> Finding | Note | None:
        order = setup.order
        if order is None or not order.same:
            return None
        if order.pure and order.purity is not None:
            return Finding(
                cause=self.id,
                text="every epoch draws the same samples in the same order, and they lie in it by class",
                observed=f"{percent(order.purity[0])} of a batch are of one class",
                expected=f"{percent(order.purity[1])}, as in a shuffled order",
                cure="DataLoader(..., shuffle=True); with a DistributedSampler, sampler.set_epoch(epoch)",
            )
        return Note(
            id=self.id,
            text="every epoch draws the same samples in the same order; shuffle=True draws another one each time",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        return self._heard(seen) if seen.sampling is None else self._read(seen, seen.sampling)

    def _read(self, seen: Observation, found: Sampling) -> Suspicion | None:
        """From the sample ids."""
        equal, pairs = found.equal_orders
        events = [
            e
            for e in seen.events
            if e.kind == "periodic" and e.period == seen.run.steps_per_epoch and not _on_a_smaller_batch(seen, e)
        ]
        if not events or not pairs or equal < pairs or found.rank_correlation is None:
            return None
        evidence = [
            Evidence(
                statement="epochs that drew the very sequence of samples of the epoch before",
                observed=f"{count(equal)} of {count(pairs)}",
                expected="0: a shuffle never comes twice",
            ),
            Evidence(
                statement="rank correlation of when a sample is drawn with its place in the file",
                observed=f"{found.rank_correlation:+.2f}",
                expected="0 in a full shuffle, +1 in the order of the file",
            ),
        ]
        if found.never is not None and len(found.never):
            evidence.append(
                Evidence(
                    statement="samples that are never trained on, because the same ones are left out each time",
                    observed=count(len(found.never)),
                    expected="0",
                )
            )
        return suspect(self, events, evidence, identity=True)

    def _heard(self, seen: Observation) -> Suspicion | None:
        """From the noise of the curve."""
        again = seen.curve.echo if seen.curve is not None else None
        if again is None:
            return None
        events = [e for e in seen.events if e.kind == "periodic" and e.period == again.lag and e.step == again.peak[0]]
        if not events:
            return None
        evidence = [
            Evidence(
                statement=f"correlation of the loss's noise with that of {count(again.lag)} steps before ({count(again.n)} pairs)",
                observed=f"{again.correlation:.2f}",
                expected=f"below {again.by_chance:.2f} at any lag in shuffled data",
                p_value=again.p_value,
            )
        ]
        known = seen.run.steps_per_epoch
        if known:
            evidence.append(
                Evidence(
                    statement="length of a pass, as the noise shows it",
                    observed=f"{count(again.lag)} steps",
                    expected=f"{count(known)} steps, as the log has it",
                )
            )
        quiet = len(seen.events) == 1  # nothing but the noise itself repeats
        return suspect(self, events, evidence, harm="none" if quiet else None)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.orders import Turned

        return [_shuffled(), Turned(TURNED)]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.orders import InsideBatches

        return InsideBatches()

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        from whyspike.pattern import pattern

        found = pattern(seen.run)
        turned = [t.reported for t in trials if t.arm == "intervention" and t.words == TURNED]
        if found is None or not turned:
            return []
        later = type(found)(np.roll(found.shape, len(found.shape) // 2), found.epochs)
        there, here = (float(np.mean([p.share_in(y) for y in turned])) for p in (later, found))
        return [
            Evidence(
                statement="how much of the pattern comes half an epoch later when the order is begun half way",
                observed=f"{there:.2f} of it; {here:.2f} in its old place",
                expected="more than in its old place, if it goes with the data and not with the clock",
            )
        ]

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        if seen.sampling is not None:
            forward = seen.sampling.rank_correlation or 0.0
            how = ", that of the file" if forward > 0.999 else ""
            return f"The data come in the same order in every epoch{how}: each epoch repeats the ups and downs of the one before."
        again = seen.curve.echo if seen.curve is not None else None
        if again is None:
            return super().sentence(seen, events)
        return (
            f"The data come in the same order in every pass, and a pass is {count(again.lag)} steps long: the noise of the "
            f"loss repeats itself at that lag (correlation {again.correlation:.2f})."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="shuffle, anew in every epoch",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True)\n"
                        "sampler.set_epoch(epoch)   # with a DistributedSampler, before each epoch",
                        "keras": "dataset.shuffle(N, reshuffle_each_iteration=True)   # fit(shuffle=True) leaves a "
                        "tf.data.Dataset as it is",
                        "hf": "dataset.set_epoch(epoch)   # for an IterableDataset; Trainer shuffles any other",
                    },
                    applicability="safe",
                ),
                make=_shuffled,
            )
        ]


def _shuffled() -> Intervention:
    from whyspike.orders import Reshuffle

    made = Reshuffle()
    made.words = "all samples of the epoch shuffled"
    return made


def _on_a_smaller_batch(seen: Observation, event: Event) -> bool:
    """Whether an event sits on a batch that has fewer samples than the others: that batch is then another one."""
    run = seen.run
    row = int(np.searchsorted(run.step, event.step))
    if event.is_wave or run.n_samples is None or run.batch_size is None or row >= len(run):
        return False
    return int(run.n_samples[row]) < run.batch_size
