from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.batchnorm import Normalised
    from whyspike.seams import Intervention

RATIO = 1.25  # a batch's loss by its own statistics over that by the running ones; .99 to 1.04 for full batches (case)
SMALL = 0.5  # of the nominal size: of larger batches the statistics are about as good


class BnSmallBatch(Cause):
    """a batch normalization over a batch of very few samples.

    What happens:
        In train mode BatchNorm divides by the spread of the batch it is given. Of two samples every channel becomes +1
        and -1, whatever they are; of one sample torch raises an error, unless there are several positions in it. The
        output says little about the sample, its loss is high, its gradient wrong, and the running statistics take it in.

    How it looks:
        One spike per epoch, at the last batch, when that has a few samples. A network without BatchNorm has none.

    How we test it:
        The steps are replayed with BatchNorm on its running statistics in that one batch; as a placebo the ordinary batch
        before it gets them. Beside it stands the loss of that batch by its own and by the running statistics, at the
        weights of that step. Before training: the same samples in batches of 1, 2, 4 and B.

    What to do:
        Drop the last batch, or normalise by something that does not depend on the batch: GroupNorm, LayerNorm. Where
        every batch is small because the memory is, SyncBatchNorm over the devices. A large epsilon damps: the gain is
        at most 1/sqrt(eps), 316 in torch and 32 in Keras.

    References:
        Ioffe & Szegedy 2015, arXiv:1502.03167; Wu & He 2018, Group Normalization, arXiv:1803.08494 (small batches).
        https://stats.stackexchange.com/q/303857.
    """

    family = "network"
    aliases = ("batchnorm", "batch-norm-small-batch", "expected more than 1 value per channel")
    needs = ("n_samples",)
    rank = 12  # before small-last-batch: a full batch removes this one, too
    measure = "reported"
    title = "batch normalization over a batch of very few samples"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        losses = setup.by_size
        if not losses or not setup.batch_size or not setup.last_batch:
            return None
        full = losses.get(max(losses))
        last = setup.last_batch
        if last == 1 and 1 in losses and losses[1] is None:
            return Finding(
                cause=self.id,
                text="the last batch of an epoch has 1 sample, and BatchNorm cannot normalise it in train mode",
                observed="a batch of 1 raises an error (Expected more than 1 value per channel)",
                expected="at least 2 samples in every batch",
                cure="DataLoader(..., drop_last=True), or GroupNorm in place of BatchNorm",
            )
        if full is None or full <= 0 or last >= SMALL * setup.batch_size:
            return None
        near = min((n for n in losses if losses[n] is not None), key=lambda n: abs(n - last))
        at_size = losses[near]
        if near > 2 * last or at_size is None:
            return None
        return Note(
            id=self.id,
            text=f"the last batch of an epoch has {last} samples, and BatchNorm normalises it by their own spread: in "
            f"batches of {near} the same samples have {at_size / full:.2f} times the loss of a full batch, before training; "
            "it grows with training. drop_last=True leaves that batch out",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        ours = _ours(seen)
        if not ours:
            return None
        events = [e for e in seen.events if e.id in ours]
        worst = max(ours.values(), key=lambda m: m.ratio)
        evidence = [
            Evidence(
                statement="loss of that batch by its own statistics, and by the running ones, at the same weights",
                observed=f"{worst.own:.3g} and {worst.running:.3g}: {worst.ratio:.2f} times",
                expected="about the same, as for a full batch",
            ),
            Evidence(
                statement="samples that BatchNorm had to go by",
                observed=f"{worst.n}",
                expected=f"{seen.run.batch_size}, as in the other batches",
            ),
        ]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import FillBatch, RunningStatistics, SkipBatch

        return [RunningStatistics(), FillBatch(draw), SkipBatch()]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RunningStatistics

        return RunningStatistics("BatchNorm on its running statistics in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        ours = _ours(seen)
        if not ours:
            return super().sentence(seen, events)
        worst = max(ours.values(), key=lambda m: m.ratio)
        return (
            f"Your loss spikes where BatchNorm has {worst.n} samples to normalise by: by the running statistics the same "
            f"batch has a loss of {worst.running:.2g} instead of {worst.own:.2g}."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import SkipBatch

        return [
            ScratchCure(
                cure=Cure(
                    words="drop the last batch; keep shuffle=True, otherwise the same samples are never trained on",
                    code={
                        "torch": "DataLoader(dataset, batch_size=B, shuffle=True, drop_last=True)",
                        "keras": "dataset.shuffle(N).batch(B, drop_remainder=True)",
                        "hf": "TrainingArguments(..., dataloader_drop_last=True)",
                    },
                    applicability="safe",
                ),
                make=lambda: SkipBatch("the last batch dropped", "partial"),
            ),
            ScratchCure(
                cure=Cure(
                    words="or normalise by what does not depend on the batch",
                    code={
                        "torch": "nn.GroupNorm(groups, channels)   # in place of nn.BatchNorm2d(channels)",
                        "keras": "keras.layers.GroupNormalization(groups)",
                        "lightning": "Trainer(..., sync_batchnorm=True)   # over the devices, where every batch is small",
                    },
                    applicability="manual",
                )
            ),
        ]


def _ours(seen: Observation) -> dict[str, Normalised]:
    """By event: batches of few samples whose loss by their own statistics is much higher."""
    size = seen.run.batch_size or 0
    return {k: m for k, m in seen.normalised.items() if m.n <= SMALL * size and m.ratio >= RATIO}
