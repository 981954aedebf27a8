from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.form import percent
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.sampling import Repeat
    from whyspike.seams import Intervention

MOST = 0.8  # of an event's steps must hold copies: the same share that an intervention must remove
RARE = 0.2  # of all steps at most: copies that are everywhere, as with replacement, tell no step from another
CROSS_SAMPLE = 0.05  # of gamma: 0 for any separable loss to rounding, 1 for InfoNCE (benchmarks/exponent.py)


class PaddedDuplicates(Cause):
    """a batch that was filled up with copies of its own samples.

    What happens:
        A sampler that must give every worker, every bucket or every step the same number of samples fills the last
        batch by repeating some. A contrastive or metric loss compares the samples of a batch with each other: a copy
        counts as a wrong answer that looks exactly like the right one. With k copies of each sample InfoNCE cannot fall
        below log k. Under any other loss such a batch is only as noisy as the fewer samples that it really holds.

    How it looks:
        A spike on the last batch of each epoch, although it has as many samples as the others; a dip where the loss of
        the others is above log k still.

    How we test it:
        The sample ids say which rows are copies. The step is replayed with other samples in place of the copies, so
        that the batch has its size and each sample once. As a placebo it gets other samples altogether that are
        repeated exactly as often: the shift must stay.

    What to do:
        Leave the incomplete batch out, or let it be smaller; or mask the copies in the loss.

    References:
        torch.utils.data.DistributedSampler pads by repeating unless drop_last=True. Per-epoch drops of a contrastive
        loss in its first and last step: https://github.com/huggingface/transformers/issues/18730. InfoNCE: van den Oord
        et al. 2018, arXiv 1807.03748; the bound log k: two equal rows have equal scores.
    """

    family = "order"
    aliases = ("duplicates", "padding", "even_batches")
    needs = ("sample_ids",)
    rank = 18  # before small-last-batch: a padded batch is one whose size hides that it is small
    measure = "deviation"
    title = "the last batch is filled up with copies of its own samples"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        order = setup.order
        if order is None or not order.copies:
            return None
        found = f"a batch of {order.size} samples holds {order.copies} of them a second time"
        if setup.exponent is None or abs(setup.exponent.gamma) <= CROSS_SAMPLE:
            return Note(id=self.id, text=f"{found}: they count twice in its mean")
        return Finding(
            cause=self.id,
            text="a batch is filled up with copies of its own samples, and the loss compares samples with each other",
            observed=found,
            expected="each sample once: two copies cannot be told apart",
            cure="drop_last=True in the sampler and the loader, or a mask over the copies",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        repeats = _repeats(seen)
        if not repeats or len(repeats) > RARE * len(seen.run):
            return None
        shares = {e.id: _share(seen, e, repeats) for e in seen.events}
        events = [e for e in seen.events if shares[e.id] >= MOST]
        if not events:
            return None
        copies = np.median([len(r.copies) for r in repeats.values()])
        size = np.median([r.n_samples for r in repeats.values()])
        evidence = [
            Evidence(
                statement="steps of these events whose batch holds a sample more than once",
                observed=percent(float(np.mean([shares[e.id] for e in events]))),
                expected=f"{percent(len(repeats) / len(seen.run))}, their share of all steps",
            ),
            Evidence(
                statement="copies in such a batch (median)",
                observed=f"{copies:.0f} of {size:.0f} samples",
                expected="0 without replacement",
            ),
        ]
        if seen.exponent is not None:
            evidence.append(
                Evidence(
                    statement="growth of the loss with n copies of each sample, over log n (frozen network)",
                    observed=f"{seen.exponent.gamma:+.2f} nats",
                    expected="0 for a loss of single samples, about 1 for one that compares them, as InfoNCE",
                )
            )
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import DropCopies, ReplaceCopies

        copies = _copies(seen)
        return [ReplaceCopies(draw, copies), DropCopies(copies)]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import CopyOthers

        def pattern(step: int) -> Sequence[int] | None:
            from whyspike.sampling import ids_at

            ids = ids_at(seen.run, step)
            return None if ids is None else np.unique(ids, return_inverse=True)[1].tolist()

        return CopyOthers(draw, pattern, "other samples in the whole batch, repeated as often")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        repeats = list(_repeats(seen).values())
        if not repeats:
            return super().sentence(seen, events)
        distinct = int(np.median([r.n_samples - len(r.copies) for r in repeats]))
        size = int(np.median([r.n_samples for r in repeats]))
        last = seen.run.steps_per_epoch is not None and all(r.index == seen.run.steps_per_epoch - 1 for r in repeats)
        where = "The last batch of each epoch" if last else "A batch"
        compared = seen.exponent is not None and abs(seen.exponent.gamma) > CROSS_SAMPLE
        why = (
            "and your loss takes the copies for wrong answers"
            if compared
            else "so that it is noisier than its size says"
        )
        return f"{where} has only {distinct} different samples, repeated until it has {size}, {why}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="leave the incomplete batch out instead of filling it up; keep shuffling",
                    code={
                        "torch": "DistributedSampler(dataset, shuffle=True, drop_last=True)\n"
                        "DataLoader(dataset, batch_size=B, sampler=sampler, drop_last=True)",
                        "keras": "dataset.shuffle(N).batch(B, drop_remainder=True)",
                        "hf": "TrainingArguments(dataloader_drop_last=True)",
                        "lightning": "Trainer(use_distributed_sampler=False)   # with your own DistributedSampler(drop_last=True)",
                    },
                    applicability="safe",
                ),
                make=_left_out,
            ),
            ScratchCure(
                cure=Cure(
                    words="or mask the copies in the loss: equal ids are no wrong answers",
                    code={
                        "torch": "same = (ids[:, None] == ids[None, :]) & ~torch.eye(len(ids), dtype=torch.bool)\n"
                        "loss = F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(ids)))",
                        "keras": "scores = keras.ops.where(same, -1e9, scores)",
                    },
                    applicability="safe",
                )
            ),
        ]


def _left_out() -> Intervention:
    from whyspike.interventions import LeaveCopiesOut

    return LeaveCopiesOut()


def _repeats(seen: Observation) -> dict[int, Repeat]:
    """The steps that hold copies, by step."""
    if seen.sampling is None:
        return {}
    return {int(seen.run.step[r.row]): r for r in seen.sampling.repeats}


def _share(seen: Observation, event: Event, repeats: dict[int, Repeat]) -> float:
    """Of an event's occurrences, how many hold copies."""
    from whyspike.periods import occurrences

    steps = [int(s) for s in occurrences(seen.run, event)]
    return float(np.mean([s in repeats for s in steps])) if steps else 0.0


def _copies(seen: Observation):
    repeats = _repeats(seen)

    def rows(step: int) -> Sequence[int]:
        return repeats[step].copies.tolist() if step in repeats else ()

    return rows
