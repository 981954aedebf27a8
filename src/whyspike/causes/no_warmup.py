from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.logsigns import CHANCE, of_log, shape_of
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

FULL = 0.5  # of the highest learning rate of the run: a training that begins with that much has no warm-up
MOST = 200  # steps from the begin in which a missing warm-up shows; later the moments have settled
END_EARLY = 0.1  # of the warm-up, before its end
END_LATE = 20  # steps after it: 1 / (1 - beta2) at .95 (Ma & Yarats 2019)
LONGER = 4  # times the warm-up
LEAST_GROWTH = 5  # values in which the learning rate grows; fewer are a jump
WARMUP = 100  # steps of the warm-up that is tried: a tenth of 2 / (1 - beta2) at .999 (Ma & Yarats 2019: all of it)


class NoWarmup(Cause):
    """a learning rate that is at its full height too early.

    What happens:
        At the begin the curvature is high and an adaptive optimizer knows next to nothing: after one step its update is
        lr times the sign of the gradient, for every weight alike, however uncertain that is. Steps of full length throw
        the network away from where it began, and it may take long to come back.

    How it looks:
        The loss rises within the first steps, above where it began or had come to, and nothing of the kind comes later.

        Where there is a warm-up, too high a learning rate shows where it is reached: the loss climbs in the last tenth of
        the warm-up or soon after it, comes back slowly or not at all, and nothing of the kind comes later. A log with
        its learning rate makes this likely.

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
    title = "the learning rate is at its full height too early"
    decides = "train with half of the learning rate, or with a warm-up four times as long; the climb must go"

    def signature(self, seen: Observation) -> Suspicion | None:
        if (at_end := _at_the_end(seen)) is not None:
            return self._of_the_end(seen, *at_end)
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

    def _of_the_end(self, seen: Observation, event: Event, end: int, window: int) -> Suspicion:
        """The suspicion of an event that begins where the warm-up ends."""
        chance = min(1.0, window / max(1, int(seen.run.step[-1] - seen.run.step[0])))
        evidence = [
            Evidence(
                statement="step at which the learning rate reaches its height, and at which the loss begins to climb",
                observed=f"{end:,} and {event.step:,}",
                expected=f"within {window:,} steps in {chance:.1%} of the cases by chance",
                p_value=chance,
            ),
            Evidence(
                statement="events in which the network moves after that",
                observed="0",
                expected="some, if the learning rate were too high later as well",
            ),
        ]
        if chance <= CHANCE:
            return suspect(self, [event], evidence, outcome="likely")
        reason = "the window around the end of the warm-up is too large a part of the run to tell; log more steps"
        return suspect(self, [event], evidence, outcome="untested", reason=reason)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        if (at_end := _at_the_end(seen)) is not None:
            return (
                f"The loss climbs where the warm-up of the learning rate ends (step {at_end[1]:,}): the height that it "
                "reaches there is more than the network bears. Train to half of that height, or with a warm-up two to "
                "four times as long."
            )
        return (
            "Your training takes steps of full length from the first one on, and they throw the network away from where it "
            "begins; grown into over some steps, the same learning rate does no harm."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import WarmUp

        if (end := warmup_end(seen.run)) is not None:
            steps = LONGER * (end + 1)
            longer = Cure(
                words="half of the height, or a warm-up two to four times as long",
                code={
                    "torch": f"warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / {steps}, total_iters={steps})",
                    "keras": "keras.optimizers.schedules.CosineDecay(0.0, total_steps, warmup_target=lr / 2, "
                    f"warmup_steps={end + 1})",
                    "hf": f"TrainingArguments(warmup_steps={steps})",
                },
                applicability="unsafe",
            )
            return [ScratchCure(cure=longer)]
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


def _at_the_end(seen: Observation) -> tuple[Event, int, int] | None:
    """The one event of a log that begins where the warm-up ends, that step, and the steps around it that count."""
    run = seen.run
    if not of_log(run) or (end := warmup_end(run)) is None:
        return None
    early, late = int(END_EARLY * end), max(END_LATE, int(END_EARLY * end))
    moved = [e for e in seen.events if not e.period and _network_moved(run, e)]
    near = [e for e in moved if end - early <= e.step <= end + late]
    if len(near) != 1 or any(e.step > end + late for e in moved):
        return None
    return near[0], end, early + late + 1


def _network_moved(run: Run, event: Event) -> bool:
    """Whether an event is more than one value: it climbs, stays, or is forgotten slowly."""
    if event.kind in ("divergence", "non-finite"):
        return True
    if event.kind == "level-shift":
        return (event.reported or 0.0) > 1.0
    return event.kind == "spike" and "comes down over" in shape_of(run, event)


def warmup_end(run: Run) -> int | None:
    """The step at which a learning rate that grows from the begin of the run on reaches its height; None without one."""
    if run.lr is None or len(run.lr) < 2 * LEAST_GROWTH:
        return None
    lr = np.asarray(run.lr, dtype=float)
    if not np.isfinite(lr).all() or not lr.max() > 0:
        return None
    top = int(np.argmax(lr))
    grown = lr[: top + 1]
    if top < LEAST_GROWTH or top > len(lr) / 2 or grown[0] > FULL * lr.max() or (np.diff(grown) < 0).any():
        return None
    return int(run.step[top])


def _first_and_highest(run: Run) -> tuple[float, float] | None:
    """The learning rate of the first step, and the highest of the run."""
    if run.lr is None or not len(run.lr) or run.step[0] != 0:
        return None
    lr = np.asarray(run.lr, dtype=float)
    if not np.isfinite(lr).all() or not lr.max() > 0:
        return None
    return float(lr[0]), float(lr.max())
