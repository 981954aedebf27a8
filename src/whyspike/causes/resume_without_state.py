from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Mark, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

EARLY = 2  # steps: an event may be seen to begin a little before the step that shows it
NEAR = 0.1  # of the way to the next resume; events at random places fall there one time in ten


class ResumeWithoutState(Cause):
    """a resume that does not bring the optimizer's state back.

    What happens:
        A checkpoint holds the weights, but not the moments and the step count of Adam (or the momentum of SGD). After
        the resume Adam's second moment is estimated from one gradient, so that its first steps have the size of the
        learning rate in every weight, however small the gradients are by then.

    How it looks:
        A spike within 2/(1 - beta2) steps after the resume, higher the lower the loss was before it.

    How we test it:
        The state is counted before and after it is loaded: how many tensors have one, and how many updates it has seen.
        Then the steps around the resumes are replayed with the state kept. As a placebo the ordinary batch before the
        resume is left out.

    What to do:
        Save and load everything: optimizer, scheduler, scaler and random generators beside the weights. After saving and
        loading, one more step must be bitwise the step that would have come.

    References:
        https://github.com/NVIDIA/apex/issues/480 and https://github.com/pytorch/pytorch/issues/35047 (a loss that jumps
        after a resume). Kingma & Ba 2015, arXiv 1412.6980, section 2.1: the first step of Adam has the size of lr.
    """

    family = "control"
    aliases = ("optimizer-state-lost", "save_only_model", "resume_from_checkpoint")
    rank = 9
    title = "after a resume the optimizer goes on without its state"

    def signature(self, seen: Observation) -> Suspicion | None:
        lost = _losses(seen)
        reach = _reach(seen)
        if not lost or reach is None:
            return None
        events = [e for e in seen.events if e.kind != "dip" and _after(lost, e, reach) is not None]
        if not events:
            return None
        rows = [_state(lost), _updates(lost), _places(seen, lost, events)]
        return suspect(self, events, [r for r in rows if r is not None])

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int]:
        return [m.step for m in _losses(seen) if 0 < m.step < len(seen.run)]

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import LeaveOut

        return [LeaveOut(("optimizer",), "the optimizer's state kept over the resume")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import SkipBatch

        return SkipBatch("the ordinary batch before the resume skipped", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        lost = _losses(seen)
        times = "a resume" if len(lost) == 1 else f"each of {len(lost)} resumes"
        betas = _defaults(seen).get("betas")
        why = (
            ": Adam's first steps have the size of the learning rate in every weight, however small the gradients are"
            if isinstance(betas, list | tuple)
            else ""
        )
        return f"After {times} the optimizer begins without its state{why}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="save the optimizer's state with the weights, and load both",
                    code={
                        "torch": 'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),\n'
                        '            "scheduler": scheduler.state_dict()}, path)\n'
                        "saved = torch.load(path)\n"
                        'optimizer.load_state_dict(saved["optimizer"])',
                        "keras": 'model.save("run.keras")   # holds the optimizer; save_weights() does not\n'
                        'model = keras.saving.load_model("run.keras")',
                        "hf": "TrainingArguments(save_only_model=False)\ntrainer.train(resume_from_checkpoint=True)",
                        "lightning": 'trainer.fit(model, ckpt_path="last")   # not load_from_checkpoint alone',
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="where the state is gone, warm the learning rate up again over 2/(1 - beta2) steps",
                    code={
                        "torch": "warmup = torch.optim.lr_scheduler.LinearLR(\n"
                        "    optimizer, start_factor=0.01, total_iters=2000\n)"
                    },
                    applicability="unsafe",
                )
            ),
        ]


def _losses(seen: Observation) -> list[Mark]:
    """The marks at which the optimizer lost a state that it had."""
    found = []
    for mark in seen.run.marked("loaded", "optimizer-state"):
        before, after = (mark.data.get("state") or (0, 0))[:2]
        old, new = ((u or 0.0) for u in (mark.data.get("updates") or (0, 0))[:2])
        emptied = mark.data.get("what") == "optimizer" and (before > after or old > new)
        if mark.data.get("lost") or emptied:
            found.append(mark)
    return found


def _defaults(seen: Observation) -> Mapping[str, object]:
    optimizer = seen.run.facts.get("optimizer")
    defaults = optimizer.get("defaults") if isinstance(optimizer, Mapping) else None
    return defaults if isinstance(defaults, Mapping) else {}


def _reach(seen: Observation) -> float | None:
    """Steps until a lost memory has filled again: 2/(1 - beta2) of Adam, 2/(1 - mu) of a momentum; None without one."""
    betas = _defaults(seen).get("betas")
    memory = betas[-1] if isinstance(betas, list | tuple) and betas else seen.momentum()
    if not isinstance(memory, int | float) or not 0 < memory < 1:
        return None
    return 2 / (1 - memory)


def _after(lost: Sequence[Mark], event: Event, reach: float) -> int | None:
    """Steps between an event and the last loss before it; None where that is too far away."""
    passed = [event.step - m.step for m in lost if m.step <= event.step + EARLY]
    return max(0, min(passed)) if passed and min(passed) <= reach else None


def _state(lost: Sequence[Mark]) -> Evidence | None:
    counted = [m.data["state"] for m in lost if m.data.get("state")]
    if not counted:
        return Evidence(statement="times that the optimizer's state was emptied", observed=str(len(lost)), expected="0")
    before, after = counted[-1]
    return Evidence(
        statement=f"weights with a state in the optimizer, after {_times(len(counted))} that it was loaded",
        observed=str(after),
        expected=f"{before}, as before",
    )


def _updates(lost: Sequence[Mark]) -> Evidence | None:
    counted = [m.data["updates"] for m in lost if (m.data.get("updates") or (None,))[0]]
    if not counted:
        return None
    return Evidence(
        statement="updates that this state has seen (Adam's step), at each resume",
        observed=", ".join(f"{after or 0:g}" for _, after in counted[:5]),
        expected=", ".join(f"{before:g}" for before, _ in counted[:5]),
    )


def _places(seen: Observation, lost: Sequence[Mark], events: Sequence[Event]) -> Evidence:
    """Where the events lie on the way from one resume to the next."""
    ends = [*(m.step for m in lost[1:]), len(seen.run)]
    shares = []
    for event in events:
        k = max(i for i, m in enumerate(lost) if m.step <= event.step + EARLY)
        shares.append(max(0, event.step - lost[k].step) / max(1, ends[k] - lost[k].step))
    n, near = len(shares), sum(u <= NEAR for u in shares)
    p = sum(comb(n, k) * NEAR**k * (1 - NEAR) ** (n - k) for k in range(near, n + 1))
    return Evidence(
        statement="events in the first tenth of the way from one resume to the next",
        observed=f"{near} of {n}",
        expected=f"{NEAR * n:.1f} by chance",
        p_value=p,
    )


def _times(n: int) -> str:
    return "the one time" if n == 1 else f"the last of {n} times"
