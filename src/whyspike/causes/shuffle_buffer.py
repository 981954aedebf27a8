from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.form import count, percent
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

FORWARD = 0.3  # rank correlation of emission and place in the file (causes.md A5, a convention)
UNKNOWN = (
    "which samples were drawn is not known: a streaming or iterable dataset hands out no ids. Stream the ids alone through "
    "the same shuffle and compare each one's place with its place in the file; or give a map-style dataset"
)


class ShuffleBuffer(Cause):
    """a shuffle buffer that is much smaller than the data set.

    What happens:
        A buffer of b samples hands out a random one of those it holds and takes in the next of the file. A sample leaves
        it near its place in the file, so that whatever the file is sorted by (class, source, date, length) is still there
        in the batches. The network learns what comes and forgets what does not, and at the epoch's boundary, where the
        buffer is emptied and filled again, the end of the file meets its begin.

    How it looks:
        The same ups and downs in every epoch, though no two epochs have the same order; often a jump at the boundary that
        decays while the first b samples go by. The loss on fixed samples moves with it, where the network forgets.

    How we test it:
        From the sample ids follows how far each sample was moved from its place in the file: by a third of the data set
        on average in a full shuffle. Then whole epochs are replayed from their boundary with all samples shuffled: the
        pattern must go. The placebo is another draw of the same buffer: the pattern must stay.

    What to do:
        Shuffle the file itself once, or the names of the shards and several of them at a time; make the buffer larger.

    References:
        tf.data.Dataset.shuffle (buffer_size). https://stackoverflow.com/q/46928328 · https://github.com/IBM/graph2tac/issues/95
        · https://github.com/tensorflow/tensorflow/issues/36626 · webdataset, shardshuffle. A third: E|U - V| of two
        uniform numbers.
    """

    family = "order"
    aliases = ("buffer-size", "streaming-shuffle")
    needs = ("steps_per_epoch",)
    rank = 38
    window = "epoch"
    measure = "pattern"
    title = "the data are shuffled only inside a buffer"

    def signature(self, seen: Observation) -> Suspicion | None:
        period = seen.run.steps_per_epoch
        events = [e for e in seen.events if e.kind == "periodic" and e.period == period]
        if not events:
            return None
        found = seen.sampling
        if found is None:
            return self._unknown(seen, events)
        from whyspike.sampling import BUFFERED

        moved, forward, buffer = found.displacement, found.rank_correlation, found.buffer
        if moved is None or forward is None or buffer is None or found.equal_orders[0]:
            return None
        if moved >= BUFFERED or forward < FORWARD:
            return None
        n = len(found.whole[0].ids)
        evidence = [
            Evidence(
                statement="how far a sample is drawn from its place in the file, on average",
                observed=percent(moved),
                expected=f"33 % of the data set in a full shuffle; below {percent(BUFFERED)} in a small buffer",
            ),
            Evidence(
                statement="rank correlation of when a sample is drawn with its place in the file",
                observed=f"{forward:+.2f}",
                expected="0 in a full shuffle, +1 in the order of the file",
            ),
            Evidence(
                statement="the earliest that a sample came before its place: the size of the buffer",
                observed=f"{count(buffer)} samples, {percent(buffer / n)} of the data set",
                expected=f"about {count(n)} in a full shuffle",
            ),
        ]
        return suspect(self, events, evidence)

    def _unknown(self, seen: Observation, events: Sequence[Event]) -> Suspicion | None:
        """Without ids: untested, where the loss is highest at the epoch's begin and this could be."""
        from whyspike.pattern import quarters

        if seen.run.index is None or (shape := quarters(seen.run)) is None or int(shape.argmax()) != 0:
            return None
        evidence = [
            Evidence(
                statement="log loss in the four quarters of the epoch, about its trend",
                observed=f"{', '.join(f'{v:+.3f}' for v in shape)} nats",
                expected="0 in each, if the epoch had no part in it; highest in the first where a buffer is filled anew",
            )
        ]
        return suspect(self, events, evidence, outcome="untested", reason=UNKNOWN)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        return [_shuffled()]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.orders import ThroughBuffer

        buffer = seen.sampling.buffer if seen.sampling is not None else None
        return ThroughBuffer(buffer or 1)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = seen.sampling
        if found is None or found.buffer is None or found.displacement is None:
            return super().sentence(seen, events)
        return (
            f"The data are shuffled only inside a buffer of about {count(found.buffer)} samples: a sample is drawn "
            f"{percent(found.displacement)} of the data set away from its place in the file, so that the order of the file "
            "shows in the loss."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="shuffle all samples: the file itself once, or by their indices in every epoch",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True)   # a map-style dataset\n"
                        "webdataset.WebDataset(urls, shardshuffle=True).shuffle(10_000)   # many small shards",
                        "keras": "dataset.shuffle(N, reshuffle_each_iteration=True)   # N: all samples\n"
                        "files.shuffle(n_files).interleave(tf.data.TFRecordDataset, cycle_length=16).shuffle(10_000)",
                        "hf": "dataset.to_iterable_dataset(num_shards=64).shuffle(seed=0, buffer_size=10_000)\n"
                        "dataset.set_epoch(epoch)   # before each epoch",
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
