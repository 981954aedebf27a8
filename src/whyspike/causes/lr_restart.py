from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

RISES = 1.5  # from one step to the next; a linear warm-up of k steps does so in its first two only
EARLY, LATE = 2, 16  # steps around a rise in which an event begins: a loss is logged before its own update
MOST = 0.8  # of an event's occurrences (as judge.REPRODUCED)


class LrRestart(Cause):
    """a learning rate that jumps up again in the middle of the training.

    What happens:
        The schedule raises the learning rate at once: a warm restart, a cyclic schedule, a cosine that is gone on with
        past its T_max, a scheduler that is stepped per batch instead of per epoch, or a resumed run that builds it anew.
        The network had settled where only small steps lead; the large ones throw it out.

    How it looks:
        The loss jumps within a few steps of each rise of the learning rate, and falls as that falls again.

    How we test it:
        The steps from each rise on are replayed with the learning rate held where it was before. The jump must go. As a
        placebo the ordinary step before the rise is made with a learning rate lowered by the same factor.

    What to do:
        Where the restarts are meant, the jumps are part of them: keep the weights from the end of a cycle. Where they are
        not, give the scheduler the number of steps that the training really has.

    References:
        Loshchilov & Hutter 2017, arXiv 1608.03983 (warm restarts). torch.optim.lr_scheduler.CosineAnnealingLR: past
        T_max the learning rate rises again. https://github.com/BVLC/caffe/issues/1445 (steps of the loss at those of
        the learning rate).
    """

    family = "optimizer"
    aliases = ("warm-restart", "cyclic-lr", "scheduler", "T_max")
    needs = ("replay",)
    rank = 25
    measure = "state"
    title = "the learning rate jumps up again"
    decides = "train on from just before the rise with the learning rate held; the jump must go"

    def signature(self, seen: Observation) -> Suspicion | None:
        rises = lr_rises(seen.run)
        if not rises:
            return None
        events = [e for e in seen.events if _begins_at(seen.run, e, list(rises))]
        if not events:
            return None
        factors = [after / before for before, after in rises.values()]
        hit = [s for s in rises if any(_near(seen.run, e, s) for e in events)]
        share = len(rises) * (EARLY + LATE + 1) / max(1, len(seen.run))
        evidence = [
            Evidence(
                statement="largest rise of the learning rate from one step to the next",
                observed=f"x {max(factors):.3g}, {len(rises)} times (steps {_steps(list(rises))})",
                expected="none after the warm-up",
            ),
            Evidence(
                statement="rises of the learning rate with an event in the steps around them",
                observed=f"{len(hit)} of {len(rises)}",
                expected=f"an event has a rise beside it in {min(1.0, share):.0%} of the cases by chance",
            ),
        ]
        return suspect(self, events, evidence)

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int] | None:
        return [s for s in lr_rises(seen.run) if any(_near(seen.run, e, s) for e in events)]

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ScaleLr
        from whyspike.optimizer_interventions import HoldLr

        return [
            HoldLr("the learning rate held where it was before its rise"),
            ScaleLr(0.1, "learning rate / 10 (the ceiling: it removes anything)", "onward"),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ScaleLr

        factors = [after / before for before, after in lr_rises(seen.run).values() if before > 0] or [10.0]
        factor = float(np.median(factors))
        return ScaleLr(
            1 / factor, f"the learning rate of the ordinary step before it divided by {factor:.3g}", "control"
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        rises = lr_rises(seen.run)
        if not rises:
            return super().sentence(seen, events)
        factor = float(np.median([after / before for before, after in rises.values()]))
        times = "once" if len(rises) == 1 else f"{len(rises)} times"
        return (
            f"Your learning rate jumps up {times} (by a factor of {factor:.3g}; steps {_steps(list(rises))}), and the "
            "loss with it."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import HoldLr

        return [
            ScratchCure(
                cure=Cure(
                    words="let the learning rate fall once, over all steps that the training has",
                    code={
                        "torch": "steps = epochs * len(loader)\n"
                        "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)\n"
                        "# scheduler.step() after every optimizer.step()",
                        "keras": "keras.optimizers.schedules.CosineDecay(lr, decay_steps=epochs * steps_per_epoch)",
                        "hf": 'TrainingArguments(lr_scheduler_type="cosine")   # not cosine_with_restarts',
                        "lightning": 'return [optimizer], [{"scheduler": scheduler, "interval": "step"}]',
                    },
                    applicability="unsafe",
                ),
                make=lambda: HoldLr("the learning rate never raised", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words="where the restarts are meant, keep the weights from the end of a cycle",
                    code={
                        "torch": "if scheduler.T_cur == scheduler.T_0 - 1:\n    torch.save(model.state_dict(), path)"
                    },
                    applicability="manual",
                )
            ),
        ]


def lr_rises(run: Run) -> dict[int, tuple[float, float]]:
    """The steps at which the learning rate jumps up, with its value before and after.

    What rises from its lowest value so far is a warm-up, not a restart.
    """
    if run.lr is None or len(run.lr) < 2:
        return {}
    lr = np.asarray(run.lr, dtype=float)
    highest = np.maximum.accumulate(np.where(np.isfinite(lr), lr, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = np.flatnonzero((lr[1:] >= RISES * lr[:-1]) & (lr[:-1] > 0) & (lr[:-1] < highest[:-1])) + 1
    return {int(run.step[r]): (float(lr[r - 1]), float(lr[r])) for r in rows}


def _near(run: Run, event: Event, step: int) -> bool:
    from whyspike.periods import occurrences

    return any(step - EARLY <= int(s) <= step + LATE for s in occurrences(run, event)) or (
        event.is_wave and event.step <= step <= event.last_step
    )


def _begins_at(run: Run, event: Event, steps: Sequence[int]) -> bool:
    """Whether an event lies at the rises: its onsets, or the period of a wave."""
    from whyspike.periods import occurrences

    if event.kind in ("dip",):
        return False
    if event.is_wave:
        gaps = np.diff(steps)
        return len(gaps) >= 2 and float(np.mean(gaps == event.period)) >= MOST
    found = [int(s) for s in occurrences(run, event)]
    near = [any(s - EARLY <= f <= s + LATE for s in steps) for f in found]
    return bool(found) and sum(near) >= MOST * len(found)


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(f"{s:,}" for s in steps[:4])
    return f"{shown}, ..." if len(steps) > 4 else shown
