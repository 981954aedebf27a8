from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

FULL = 0.5  # of the highest learning rate of the run: a training that begins with that much has no warm-up
MOST = 200  # steps from the begin in which a missing warm-up shows; later the moments have settled
WARMUP = 100  # steps of the warm-up that is tried: a tenth of 2 / (1 - beta2) at .999 (Ma & Yarats 2019: all of it)


class NoWarmup(Cause):
    """a learning rate that is at its full height from the first step.

    What happens:
        At the begin the curvature is high and an adaptive optimizer knows next to nothing: after one step its update is
        lr times the sign of the gradient, for every weight alike, however uncertain that is. Steps of full length throw
        the network away from where it began, and it may take long to come back.

    How it looks:
        The loss rises within the first steps, above where it began or had come to, and nothing of the kind comes later.

    How we test it:
        Not by a replay: this cause is a preview. It happens once in a training, at its begin, where a rank against 99 placebo draws cannot
        pass the correction for several causes; and in the cases that we tried, what other spikes survive (learning rates
        shaken by three tenths) moved this one, too. Hence this cause says where to look, and its cure is trained from
        scratch.

    What to do:
        Let the learning rate grow over the first steps: some hundred, or 2 / (1 - beta2) with Adam.

    References:
        Ma & Yarats 2021, arXiv 1910.04209 (a linear warm-up over 2 / (1 - beta2) steps). Liu et al. 2020, arXiv 1908.03265
        (RAdam). Kalra & Barkeshli 2024, arXiv 2406.09405. Goyal et al. 2017, arXiv 1706.02677.
    """

    family = "optimizer"
    aliases = ("warmup", "warm-up", "warmup-end")
    status = "preview"
    rank = 28
    title = "the learning rate is at its full height from the first step"

    def signature(self, seen: Observation) -> Suspicion | None:
        lr = _first_and_highest(seen.run)
        if lr is None or lr[0] < FULL * lr[1]:
            return None
        early = [e for e in seen.events if e.step < MOST and e.kind in ("spike", "level-shift", "divergence")]
        early = [e for e in early if not e.period and (e.state is None or e.state >= 1.1)]
        if not early:
            return None
        later = [e for e in seen.events if e.step >= MOST and e.kind != "dip" and (e.state is None or e.state >= 1.1)]
        evidence = [
            Evidence(
                statement="learning rate of the first step over the highest of the run",
                observed=f"{lr[0] / lr[1]:.2f}",
                expected="near 0 with a warm-up",
            ),
            Evidence(
                statement=f"events in which the network moves: in the first {MOST} steps, and later",
                observed=f"{len(early)}, and {len(later)} in {max(0, len(seen.run) - MOST):,} steps",
                expected=f"{(len(early) + len(later)) * MOST / max(1, len(seen.run)):.1f} in the first ones by chance",
            ),
        ]
        if later:
            reason = "the network is thrown about later, too: the learning rate is not too high at the begin alone"
            return suspect(self, early, evidence, outcome="refuted", reason=reason)
        reason = (
            "it happens once in a training, and one event is not enough for a proof by replays; train with a warm-up and "
            "compare"
        )
        return suspect(self, early[:1], evidence, outcome="untested", reason=reason)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        return (
            "Your training takes steps of full length from the first one on, and they throw the network away from where it "
            "begins; grown into over some steps, the same learning rate does no harm."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import WarmUp

        return [
            ScratchCure(
                cure=Cure(
                    words="let the learning rate grow over the first steps",
                    code={
                        "torch": f"warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / {WARMUP}, total_iters={WARMUP})\n"
                        "# warmup.step() after every optimizer.step(); SequentialLR to go on with another schedule",
                        "keras": "keras.optimizers.schedules.CosineDecay(0.0, total_steps, warmup_target=lr, "
                        f"warmup_steps={WARMUP})",
                        "hf": f"TrainingArguments(warmup_steps={WARMUP})",
                        "lightning": 'return [optimizer], [{"scheduler": warmup, "interval": "step"}]',
                    },
                    applicability="safe",
                ),
                make=lambda: WarmUp(WARMUP, f"a warm-up of {WARMUP} steps"),
            )
        ]


def _first_and_highest(run: Run) -> tuple[float, float] | None:
    """The learning rate of the first step, and the highest of the run."""
    if run.lr is None or not len(run.lr) or run.step[0] != 0:
        return None
    lr = np.asarray(run.lr, dtype=float)
    if not np.isfinite(lr).all() or not lr.max() > 0:
        return None
    return float(lr[0]), float(lr.max())
