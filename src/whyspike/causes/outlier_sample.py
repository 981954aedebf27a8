from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.exposures import exposures, rows_of
from whyspike.logsigns import once_per_epoch
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.profile import Profile
    from whyspike.seams import Intervention

SHOWN = 8  # dataset indices that are named in one sentence


class OutlierSample(Cause):
    """single samples that are corrupt, mislabelled or far from all others.

    What happens:
        A few samples have a loss and a gradient many times those of the others. Whenever one is drawn, it fills the
        gradient of its whole batch and throws the network off.

    How it looks:
        Spikes at no fixed place, each in a batch that holds such a sample; the same dataset indices come back. Adam,
        which divides by the size of past gradients, shows little of it; SGD shows all.

    How we test it:
        The batch that carries the spike is found by skipping each in turn. In it the samples of the highest loss are
        replaced one by one; with the right one replaced the spike must go. As a placebo another sample of the same
        batch is replaced. Put into an earlier batch, the sample must make a spike there.

    What to do:
        Look at the samples that are named, and repair or drop what is wrong with them. Where they are right, use a
        loss that grows more slowly with the error, or clip the gradient.

    References:
        https://stats.stackexchange.com/q/303857 lists outliers. OLMo 2, arXiv 2501.00656, on repeated n-grams before
        spikes of the gradient norm. Huber 1964, on losses that limit what one sample can do.
    """

    family = "data"
    aliases = ("outlier", "mislabelled", "mislabeled", "corrupt-sample", "label-noise")
    needs = ("replay",)
    rank = 10
    measure = "state"
    title = "single samples are far from all others"
    decides = "log the sample ids of each step; the one that all high batches share is it"

    def signature(self, seen: Observation) -> Suspicion | None:
        named = [p for p in seen.profiles.values() if p.kind == "one sample"]
        if not named:
            return self._of_log(seen)
        carried = {p.event for p in named}
        rows = _rows(seen)
        events = [e for e in seen.events if e.id in carried or (e.kind == "spike" and e.step in rows)]
        share = [p.sample_share for p in named if p.sample_share is not None]
        moved = [p.sample_moved for p in named if p.sample_moved is not None]
        evidence = [
            Evidence(
                statement="spikes of the network that one sample carries",
                observed=f"{len(named)} of {len(seen.profiles)} that were replayed: {_names(named)}",
                expected="none, if the batch as a whole or the step size sets them off",
            ),
            Evidence(
                statement="removed when that sample alone is replaced (median of these spikes)",
                observed=f"{np.median(share):.0%}",
                expected="80 % or more",
            ),
        ]
        if len(events) > len(carried):
            ids = {p.sample for p in named if p.sample_known}
            per_batch = (
                (seen.run.batch_size or 1) * len(ids) / max(1, int(str(seen.run.facts.get("dataset_size") or 1)))
            )
            others = [e for e in seen.events if e.kind == "spike" and not e.period and e.id not in carried]
            evidence.append(
                Evidence(
                    statement="other spikes whose batch holds one of these samples",
                    observed=f"{len(events) - len(carried)} of {len(others)}",
                    expected=f"{per_batch * len(others):.1f} by chance",
                )
            )
        if moved:
            evidence.append(
                Evidence(
                    statement="of the spike's area appears earlier when the sample is put into an earlier batch (median)",
                    observed=f"{np.median(moved):.0%}",
                    expected="above 0 % if it is the sample, whatever the batch and the state; 0 % else",
                )
            )
        ids = sorted({p.sample for p in named if p.sample_known and p.sample is not None})
        found = exposures(seen.run, ids)
        if found is not None and found.learnt:
            reason = (
                f"the network learns them: {found.left:.0%} of what their batches have too much is left in the last third "
                f"of {found.n} times that they are trained on"
            )
            return suspect(self, events, evidence, outcome="refuted", reason=reason)
        return suspect(self, events, evidence)

    def _of_log(self, seen: Observation) -> Suspicion | None:
        found = once_per_epoch(seen.run, seen.events)
        if found is None:
            return None
        evidence = Evidence(
            statement=f"spikes in each of {len(found.places)} epochs, and their places in it",
            observed=f"one; {', '.join(map(str, found.places[:SHOWN]))}",
            expected="none in some epochs and several in others; exactly one, at any place, if one sample makes them",
            p_value=found.chance,
        )
        return suspect(self, found.events, [evidence])

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm, ScaleLr, SkipBatch
        from whyspike.sample_interventions import ReplaceNamed

        arms: list[Intervention] = [
            ReplaceNamed(_rows(seen), draw, "the named sample of the batch replaced"),
            SkipBatch(),
        ]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms.append(ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm"))
        return [*arms, ScaleLr(0.1, "learning rate / 10 throughout (the ceiling: it removes anything)", "always")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.sample_interventions import ReplaceNamed

        return ReplaceNamed(_rows(seen), draw, "another sample of the same batch replaced", beside=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        named = [p for p in seen.profiles.values() if p.kind == "one sample"]
        if not named:
            return (
                "Your loss spikes exactly once in every epoch, each time at another place: as one sample does that is "
                "unlike all others, in a data set that is reshuffled."
            )
        one = len({p.sample for p in named}) == 1
        return (
            f"Your loss spikes because of {'one sample' if one else 'single samples'}, {_names(named)}: with "
            f"{'it' if one else 'the one in the batch'} replaced, the spike is gone."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ClipGradNorm
        from whyspike.sample_interventions import WithoutSamples

        named = sorted({p.sample for p in seen.profiles.values() if p.sample is not None and p.sample_known})
        listed = f"[{', '.join(map(str, named[:SHOWN]))}{', ...' if len(named) > SHOWN else ''}]"
        cures = [
            ScratchCure(
                cure=Cure(
                    words=f"look at the samples {listed}, and repair or drop them",
                    code={
                        "torch": f"bad = {listed}\n"
                        "dataset = torch.utils.data.Subset(dataset, sorted(set(range(len(dataset))) - set(bad)))",
                        "keras": f"bad = {listed}\nx, y = np.delete(x, bad, axis=0), np.delete(y, bad, axis=0)",
                        "hf": f"bad = {listed}\ndataset = dataset.select([i for i in range(len(dataset)) if i not in bad])",
                    },
                    applicability="manual",
                ),
                make=(lambda: WithoutSamples(named)) if named else None,
            )
        ]
        norm = seen.median_gradient_norm()
        if norm is not None:
            words = f"gradient clipped to {norm:.2g}"
            cures.append(
                ScratchCure(
                    cure=Cure(
                        words="where they are right: clip the gradient at its median norm, or use a Huber loss",
                        code={
                            "torch": f"torch.nn.utils.clip_grad_norm_(model.parameters(), {norm:.2g})",
                            "keras": f"keras.optimizers.SGD(lr, global_clipnorm={norm:.2g})",
                            "hf": f"TrainingArguments(max_grad_norm={norm:.2g})",
                            "lightning": f"Trainer(gradient_clip_val={norm:.2g})",
                        },
                        applicability="unsafe",
                    ),
                    make=lambda: ClipGradNorm(norm, words, "always"),
                    expected="protects",
                )
            )
        return cures


def _rows(seen: Observation) -> dict[int, tuple[int, ...]]:
    """Of the steps whose batch holds a named sample, its rows in the batch.

    Not of the events' steps alone: one named sample may be drawn while the network still recovers from another.
    """
    named = [p for p in seen.profiles.values() if p.kind == "one sample"]
    known = [p.sample for p in named if p.sample_known and p.sample is not None]
    return {p.batch_step: (p.sample_row,) for p in named if p.batch_step is not None} | rows_of(seen.run, known)


def _names(profiles: Sequence[Profile]) -> str:
    counted = Counter(p.sample for p in profiles if p.sample_known)
    if not counted:
        return "by its row in the batch, because the loader gives no sample ids"
    shown = [f"{i} ({n} times)" if n > 1 else f"{i}" for i, n in counted.most_common(SHOWN)]
    more = f" and {len(counted) - SHOWN} more" if len(counted) > SHOWN else ""
    return f"dataset index {', '.join(shown)}{more}"
