from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.exposures import LEAST, Exposures, exposures, rows_of
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

SHOWN = 8  # dataset indices that are named in one sentence


class HardButLegitData(Cause):
    """samples that are right but rare, and that the network learns in time.

    What happens:
        A few samples come from where there are hardly any others: a rare class, another kind of text. The network is far
        off on them, and each time that one is drawn its gradient fills the batch and throws the network off for the
        others, until it has learnt both.

    How it looks:
        Spikes whose batches hold the same few dataset indices, as with a corrupt sample. But the loss on these samples
        falls each time that they are trained on, and in the end there are no such spikes any more.

    How we test it:
        The batch that carries the spike is found by skipping each in turn, and the sample by replacing those of the
        highest loss one by one; with it replaced the spike must go. As a placebo another sample of the batch is replaced.
        What tells it from a corrupt sample is its loss, from the first times that it was trained on to the last ones.

    What to do:
        Do not delete them. Wait, clip the gradient, or draw their kind more often, at a smaller weight.

    References:
        Feldman 2020, arXiv 1906.05271 (long tails have to be learnt by heart). Swayamdipta et al. 2020, arXiv 2009.10795,
        on telling hard from mislabelled samples by how their loss goes over the training.
    """

    family = "data"
    aliases = ("hard-sample", "rare-class", "long-tail")
    needs = ("replay", "sample_ids")
    rank = 9
    measure = "state"
    title = "samples that are rare, but right, and learnt in time"

    def signature(self, seen: Observation) -> Suspicion | None:
        ids, found = learnt(seen)
        if found is None:
            return None
        rows = rows_of(seen.run, ids)
        events = [e for e in seen.events if e.kind == "spike" and not e.period and e.step in rows]
        if not events:
            return None
        named = [p for p in seen.profiles.values() if p.kind == "one sample" and p.sample_known and p.sample in ids]
        share = [p.sample_share for p in named if p.sample_share is not None]
        evidence = [
            Evidence(
                statement="spikes of the network that one of these samples carries",
                observed=f"{len(named)} of {len(seen.profiles)} that were replayed: dataset index {_list(ids)}",
                expected="none, if the batch as a whole or the step size sets them off",
            ),
            Evidence(
                statement="removed when that sample alone is replaced (median of these spikes)",
                observed=f"{np.median(share):.0%}",
                expected="80 % or more",
            ),
            Evidence(
                statement=f"what the batches with these samples ({found.n}) have too much, in the last third over the first",
                observed=f"{found.left:.0%}",
                expected="20 % or less if they are learnt; about 100 % if they are corrupt",
            ),
        ]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm, SkipBatch
        from whyspike.sample_interventions import ReplaceNamed

        rows = rows_of(seen.run, learnt(seen)[0])
        arms: list[Intervention] = [
            ReplaceNamed(rows, draw, "the named sample of the batch replaced"),
            SkipBatch(),
        ]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms.append(ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm"))
        return arms

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.sample_interventions import ReplaceNamed

        rows = rows_of(seen.run, learnt(seen)[0])
        return ReplaceNamed(rows, draw, "another sample of the same batch replaced", beside=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        ids, found = learnt(seen)
        if found is None:
            return super().sentence(seen, events)
        return (
            f"Your loss spikes where a batch holds a rare sample (dataset index {_list(ids)}); these are right, for the "
            f"network learns them: only {found.left:.0%} of their excess is left in the end."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ClipGradNorm

        norm = seen.median_gradient_norm()
        limit = norm if norm is not None else 1.0
        clip = Cure(
            words="clip the gradient at its median norm: one sample cannot throw the network off then",
            code={
                "torch": f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:.2g})",
                "keras": f"keras.optimizers.SGD(lr, global_clipnorm={limit:.2g})",
                "hf": f"TrainingArguments(max_grad_norm={limit:.2g})",
                "lightning": f"Trainer(gradient_clip_val={limit:.2g})",
            },
            applicability="unsafe",
        )
        words = f"gradient clipped to {limit:.2g}"
        return [
            ScratchCure(cure=clip, make=lambda: ClipGradNorm(limit, words, "always"), expected="protects"),
            ScratchCure(
                cure=Cure(
                    words="keep them, and draw their kind more often at a smaller weight",
                    code={
                        "torch": "sampler = torch.utils.data.WeightedRandomSampler(often, len(dataset))\n"
                        "loss = (F.mse_loss(outputs, targets, reduction='none').mean(1) / often[ids]).mean()",
                        "keras": "model.fit(x, y, sample_weight=1 / often)",
                    },
                    applicability="manual",
                )
            ),
        ]


def learnt(seen: Observation) -> tuple[list[int], Exposures | None]:
    """The samples that single spikes were traced to and that the network learns, and how; none where they stay."""
    named = {p.sample for p in seen.profiles.values() if p.kind == "one sample" and p.sample_known}
    ids = sorted(i for i in named if i is not None)
    found = exposures(seen.run, ids)
    return (ids, found) if found is not None and found.n >= LEAST and found.learnt else ([], None)


def _list(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:SHOWN]))}{' and more' if len(ids) > SHOWN else ''}"
