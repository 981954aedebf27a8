from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Mark, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

SOON = 4  # steps after an evaluation in which its effect begins to show
MOST = 0.8  # of an event's occurrences must lie where the evaluations left something (as judge.REPRODUCED)
BY_HAND = ("weights", "optimizer")  # between epochs, without an evaluation that was announced: may be meant


class EvalSideEffects(Cause):
    """an evaluation that leaves something behind in the training.

    What happens:
        An evaluation switches the model to eval mode, or swaps averaged weights in, and does not put everything back.
        The training goes on without dropout, with frozen batch statistics, or from other weights than its own.

    How it looks:
        The loss jumps right after evaluations, up or down. Where `model.train()` is called once per epoch and an
        evaluation comes in the middle, the loss has one level before it and another after it, once per epoch.

    How we test it:
        Checksums of weights and buffers, the optimizer's state and the training flag of every module are compared
        before the evaluation and at the next update; that alone proves it. Where the loss jumps, the steps around the
        evaluations are replayed with what they left behind left out. As a placebo the ordinary batch before is left out.
        Random numbers that an evaluation draws are noted, and are no fault.

    What to do:
        Put everything back, also after an exception: `model.train()` and the own weights in a `finally`.

    References:
        https://github.com/fartashf/vsepp/issues/4 (train mode only until the first validation of each epoch);
        https://github.com/pytorch/pytorch/issues/104770 (an evaluation that changes the training). The checksum test
        is exact.
    """

    family = "control"
    aliases = ("swapped-weights", "model.eval", "ema-weights-left-in", "missing model.train()")
    rank = 8
    measure = "jump"
    title = "an evaluation leaves something behind in the training"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        left = [p for p in setup.evaluation or () if p in ("weights", "modes")]
        if not left:
            return None
        return Finding(
            cause=self.id,
            text=f"after one call of evaluate(model), {_list(left)} are not what they were before",
            observed=f"changed: {_list(left)}",
            expected="nothing changed",
            cure="put everything back in a finally: model.train(), and the own weights",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        left = _Left.of(seen)
        if not left.marks:
            return None
        events = [e for e in seen.events if left.explains(seen, e)]
        certain = any(m.name != "boundary" for m in left.marks)
        if not certain and not events:
            return None  # changed by hand between two epochs, and nothing came of it
        return suspect(self, events, left.evidence(seen, events), identity=certain, alone=certain)

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int]:
        return [m.step for m in _Left.of(seen).marks if 0 < m.step < len(seen.run)]

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import LeaveOut

        left = _Left.of(seen)
        words = f"{_list(left.parts)} as before the evaluation" if left.parts else "nothing left behind"
        return [LeaveOut(("weights", "buffers", "modes", "optimizer"), words)]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import SkipBatch

        return SkipBatch("the ordinary batch before the evaluation skipped", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        left = _Left.of(seen)
        n = len(left.marks)
        of = (
            f"{n} of {left.n_evaluations} evaluations"
            if left.n_evaluations
            else f"{n} place{'' if n == 1 else 's'} between epochs"
        )
        said = []
        if left.modes:
            said.append(f"the model is left in eval mode ({left.modes} modules)")
        if left.parts and left.parts != ("modes",):
            said.append(f"{_list([p for p in left.parts if p != 'modes'])} are not those from before")
        shown = ", and the loss jumps" if events else ""
        return f"After {of}, {' and '.join(said) or 'something is left behind'}{shown}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        left = _Left.of(seen)
        mode = Cure(
            words="switch back to train mode after every evaluation, in a finally",
            code={
                "torch": "model.eval()\ntry:\n    with torch.no_grad():\n        evaluate(model)\nfinally:\n"
                "    model.train()",
                "keras": "model.fit(..., validation_data=...)   # switches by itself; else call model(x, training=True)",
                "lightning": "def on_validation_end(self):\n    self.train()   # only where your own code calls eval()",
                "hf": "trainer.evaluate()   # train mode comes back with every training_step",
            },
            applicability="safe",
        )
        weights = Cure(
            words="evaluate a copy with the averaged weights, and leave the trained model alone",
            code={
                "torch": "averaged = torch.optim.swa_utils.AveragedModel(\n"
                "    model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)\n)\n"
                "averaged.update_parameters(model)   # after every step\nevaluate(averaged)",
                "keras": "keras.callbacks.SwapEMAWeights(swap_on_epoch=True)   # swaps in for the evaluation, and back",
                "lightning": "lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.999)",
            },
            applicability="safe",
        )
        chosen = [weights] if "weights" in left.parts else []
        return [ScratchCure(cure=c) for c in (*chosen, *([mode] if left.modes or not chosen else []))]


@dataclass(frozen=True)
class _Left:
    """What the evaluations of a run left behind."""

    marks: tuple[Mark, ...]  # of the evaluations, and of the gaps between epochs, after which something was changed
    n_evaluations: int
    parts: tuple[str, ...]
    modes: int  # modules left in eval mode, at most
    spans: tuple[tuple[int, int], ...]  # steps that were trained in eval mode, [first, last)

    @classmethod
    def of(cls, seen: Observation) -> _Left:
        run = seen.run
        evaluations = run.marked("evaluation")
        marks, parts = [], set()
        for mark in (*evaluations, *run.marked("boundary", "modes")):
            found = _faults(mark)
            if found:
                marks.append(mark)
                parts |= found
        marks.sort(key=lambda m: m.step)
        spans, since = [], None
        for mark in sorted((*evaluations, *run.marked("modes")), key=lambda m: m.step):
            if "training" not in mark.data:
                continue
            if since is None and not mark.data["training"]:
                since = mark.step
            elif since is not None and mark.data["training"]:
                spans.append((since, mark.step))
                since = None
        if since is not None:
            spans.append((since, int(run.step[-1]) + 1 if len(run) else since))
        return cls(
            marks=tuple(marks),
            n_evaluations=len(evaluations),
            parts=tuple(p for p in ("weights", "buffers", "modes", "optimizer") if p in parts),
            modes=max((int(m.data.get("left_in_eval", 0)) for m in marks if "modes" in _faults(m)), default=0),
            spans=tuple(spans),
        )

    def explains(self, seen: Observation, event: Event) -> bool:
        """Whether an event lies where the evaluations left something."""
        from whyspike.periods import occurrences

        first = self.marks[0].step
        steps = [int(s) for s in occurrences(seen.run, event) if s >= first]
        high = event.reported is None or event.reported > 1
        return bool(steps) and sum(self._touched(s, high=high) for s in steps) >= MOST * len(steps)

    def _touched(self, step: int, *, high: bool) -> bool:
        """Right after an evaluation; or in eval mode where the loss is low, back in train mode where it is high."""
        if any(m.step <= step < m.step + SOON for m in self.marks):
            return True
        off = any(first <= step < last for first, last in self.spans)
        return bool(self.spans) and step >= self.spans[0][0] and off is not high

    def evidence(self, seen: Observation, events: Sequence[Event]) -> list[Evidence]:
        n = max(self.n_evaluations, len(self.marks))
        rows = []
        for part, words in (
            ("weights", "evaluations after which the weights have another checksum than before"),
            ("optimizer", "evaluations after which the optimizer's state is another"),
            ("buffers", "evaluations in which the batch statistics learned"),
            ("modes", "evaluations after which the model is still in eval mode at the next update"),
        ):
            count = sum(part in _faults(m) for m in self.marks)
            if part in self.parts:
                rows.append(Evidence(statement=words, observed=f"{count} of {n}", expected=f"0 of {n}"))
        trained = sum(last - first for first, last in self.spans)
        if trained and len(seen.run):
            share = 100 * trained / len(seen.run)
            observed = f"{trained:,} of {len(seen.run):,} ({share:.0f} %)"
            rows.append(Evidence(statement="steps trained in eval mode", observed=observed, expected="0"))
        if events:
            high = events[0].reported is None or events[0].reported > 1
            share = sum(self._touched(int(s), high=high) for s in seen.run.step) / max(1, len(seen.run))
            rows.append(
                Evidence(
                    statement="events right after those evaluations, or where train and eval mode make the difference",
                    observed=f"{len(events)} of {len(seen.events)}",
                    expected=f"{100 * share:.0f} % of them by chance",
                )
            )
        return rows


def _faults(mark: Mark) -> set[str]:
    """What of a mark is a fault. Generators may move; buffers are counters, unless they are batch statistics."""
    changed = set(mark.data.get("changed", ()))
    found = changed & {"weights", "optimizer"}
    if mark.name == "boundary":
        return found & set(BY_HAND)
    if mark.data.get("statistics"):
        found.add("buffers")
    if mark.data.get("left_in_eval") and not mark.data.get("training", True):
        found.add("modes")
    return found


def _list(parts: Sequence[str]) -> str:
    words = {"weights": "the weights", "buffers": "the batch statistics", "modes": "the training flags"}
    named = [words.get(p, f"the {p}'s state") for p in parts]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
