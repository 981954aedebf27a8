from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.form import count
from whyspike.types import Cure, Event, Evidence, Suspicion


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
        Equal sequences of sample ids are a proof. On a log alone: the correlation of the loss's noise with itself at
        every lag, against the highest that shuffled noise reaches at any lag. It also tells the length of a pass to the
        step, which a log often does not say, or says wrongly.

    What to do:
        Shuffle, anew in every epoch.

    References:
        BVLC/caffe#1445 · pytorch/pytorch#31771 and the warning in the documentation of DistributedSampler ·
        jingyaogong/minimind#503 · k2-fsa/icefall#1676
    """

    family = "order"
    aliases = ("sorted-data", "missing-set-epoch", "no-shuffle")
    rank = 56
    title = "the data come in the same order in every pass"

    def signature(self, seen: Observation) -> Suspicion | None:
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

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
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
                )
            )
        ]
