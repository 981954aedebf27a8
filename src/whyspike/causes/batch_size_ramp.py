from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

LASTS = 16  # steps of one size on either side of a change: a smaller last batch is none
CHANGES = 1.25  # times as many samples, or as few
EARLY, LATE = 2, 48  # steps around a change in which an event begins; the noise of a smaller batch adds up slowly


class BatchSizeRamp(Cause):
    """a batch size that changes during the training while the learning rate does not follow.

    What happens:
        The noise of a step grows with lr / B. Where the batch becomes smaller, a learning rate that suited the larger one
        is too high for it, and the network is shaken off the level that it had reached. Where it becomes larger and the
        learning rate is raised along with it, the longer steps may be more than the curvature allows.

    How it looks:
        The loss, also on fixed samples, rises within some steps of a change of the batch size and stays up.

    How we test it:
        The steps from the change on are replayed with batches of the size before, filled up with other training samples
        (or cut down to it). The rise must go. As a placebo the samples are replaced by as many others, at the new size.

    What to do:
        Change the learning rate along with the batch size: in proportion for SGD, by its square root for Adam; in small
        steps.

    References:
        Smith et al. 2018, arXiv 1711.00489 (noise scale lr N / B). McCandlish et al. 2018, arXiv 1812.06162. Goyal et al.
        2017, arXiv 1706.02677 (linear scaling). Malladi et al. 2022, arXiv 2205.10287 (square root for Adam).
    """

    family = "data"
    aliases = ("batch-size-schedule", "batch size warmup", "rampup-batch-size")
    needs = ("n_samples", "replay")
    rank = 24
    measure = "state"
    title = "the batch size changes and the learning rate does not follow"

    def signature(self, seen: Observation) -> Suspicion | None:
        changes = size_changes(seen.run)
        events = [e for e in seen.events if e.kind != "dip" and any(c.near(seen.run, e) for c in changes)]
        if not events:
            return None
        hit = [c for c in changes if any(c.near(seen.run, e) for e in events)]
        share = min(1.0, len(changes) * (EARLY + LATE + 1) / max(1, len(seen.run)))
        evidence = [
            Evidence(
                statement="samples per step, before and after",
                observed="; ".join(f"{c.before} to {c.after} at step {c.step:,}" for c in hit[:4]),
                expected="the same throughout",
            ),
            Evidence(
                statement="changes of the batch size with an event right after them",
                observed=f"{len(hit)} of {len(changes)}",
                expected=f"an event has a change beside it in {share:.0%} of the cases by chance",
            ),
            Evidence(
                statement="learning rate over the batch size, after the change over before",
                observed=", ".join(f"x {c.noise:.3g}" for c in hit[:4]),
                expected="x 1 for SGD where the learning rate follows",
            ),
        ]
        return suspect(self, events, evidence)

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int] | None:
        return [c.step for c in size_changes(seen.run) if any(c.near(seen.run, e) for e in events)]

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ResizeBatch, ScaleLr

        sizes = {c.step: c.before for c in size_changes(seen.run)}
        noise = [c.noise for c in size_changes(seen.run)]
        arms: list[Intervention] = [ResizeBatch(draw, sizes, "batches of the size before the change")]
        if noise and float(np.median(noise)) > 1:
            arms.append(ScaleLr(1 / float(np.median(noise)), "the learning rate lowered with the batch size", "onward"))
        return arms

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "as many other samples in the batches, at the new size", "onward")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        hit = [c for c in size_changes(seen.run) if any(c.near(seen.run, e) for e in events)]
        if not hit:
            return super().sentence(seen, events)
        first = hit[0]
        more = f" (and at {len(hit) - 1} more changes)" if len(hit) > 1 else ""
        return (
            f"Your batch size goes from {first.before} to {first.after} at step {first.step:,}{more}, the learning rate "
            "does not suit the new one, and the loss rises with it."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="change the learning rate along with the batch size",
                    code={
                        "torch": "for group in optimizer.param_groups:\n"
                        "    group['lr'] *= new_size / old_size   # SGD; its square root for Adam",
                        "keras": "optimizer.learning_rate = optimizer.learning_rate * new_size / old_size",
                        "lightning": "for group in self.optimizers().param_groups:\n"
                        "    group['lr'] *= new_size / old_size",
                        "hf": "TrainingArguments(learning_rate=lr * new_size / old_size)   # of the run that goes on",
                    },
                    applicability="unsafe",
                )
            )
        ]


@dataclass(frozen=True)
class SizeChange:
    """A change of the ordinary batch size."""

    step: int  # the first of the new size
    before: int
    after: int
    noise: float  # of lr / B: after over before

    def near(self, run: Run, event: Event) -> bool:
        from whyspike.periods import occurrences

        first = next(iter(occurrences(run, event)), event.step)
        return self.step - EARLY <= int(first) <= self.step + LATE and not event.period


def size_changes(run: Run) -> tuple[SizeChange, ...]:
    """The changes of the batch size that last."""
    if run.n_samples is None or len(run) < 2 * LASTS:
        return ()
    n = np.asarray(run.n_samples)
    found = []
    for row in np.flatnonzero(n[1:] != n[:-1]) + 1:
        before, after = n[max(0, row - LASTS) : row], n[row : row + LASTS]
        if len(before) < LASTS or len(after) < LASTS:
            continue
        # One epoch's smaller last batch may lie right before the change.
        old, new = int(np.median(before)), int(np.median(after))
        steady = np.mean(before == old) > 0.9 and np.mean(after == new) > 0.9 and after[0] == new
        if not steady or not (new >= CHANGES * old or new * CHANGES <= old) or old < 1 or new < 1:
            continue
        if found and row - int(np.searchsorted(run.step, found[-1].step)) < LASTS:
            continue
        rate = 1.0 if run.lr is None or not run.lr[row - 1] > 0 else float(run.lr[row] / run.lr[row - 1])
        found.append(SizeChange(int(run.step[row]), old, new, rate * old / new))
    return tuple(found)
