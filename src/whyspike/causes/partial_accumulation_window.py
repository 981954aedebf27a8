from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Finding, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

TOLERANCE = 0.35  # of log(r/k): the loss of a cut window is that of fewer samples, and noisier


class PartialAccumulationWindow(Cause):
    """an epoch whose last accumulation window is cut short, but divided as if it were whole.

    What happens:
        k micro-batches make one update, and each loss is divided by k. Where the epoch's number of micro-batches is no
        multiple of k, its last window has only r of them, and is divided by k all the same: gradient and logged loss are
        r/k of what they should be. With SGD that update is r/k of an ordinary one.

    How it looks:
        Once per epoch, on the last step, the logged loss dips to r/k of its level, where the divided losses are what is
        logged. Where their mean is logged, nothing shows, and the update is small all the same.

    How we test it:
        Arithmetic says r and k. Which number the loop divides by is read from a replay: of dividing by r and by k one gives
        the record bitwise. Then the cut windows are replayed with their losses multiplied by k/r; as a placebo the ordinary
        step before gets that factor.

    What to do:
        Divide by the number of micro-batches that the window has, or let the epoch have a multiple of k.

    References:
        https://github.com/Lightning-AI/pytorch-lightning/issues/19987 (the last window of an epoch); Hugging Face
        Accelerate divides by the number of a window's own batches.
    """

    family = "scale"
    aliases = ("gradient-accumulation-remainder", "accumulate_grad_batches")
    needs = ("n_samples", "steps_per_epoch")
    rank = 13
    measure = "dip"
    title = "the epoch's last accumulation window is cut short, but divided as if it were whole"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        if setup.accumulate < 2 or not setup.batch_size or not setup.last_batch:
            return None
        micro = -(-setup.last_batch // max(1, setup.batch_size // setup.accumulate))
        if micro >= setup.accumulate:
            return None
        return Note(
            id=self.id,
            text=f"the last update of every epoch has {micro} of {setup.accumulate} micro-batches; divided by "
            f"{setup.accumulate} it is {micro / setup.accumulate:.2g} of an ordinary one",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        found = _window(seen)
        if found is None:
            return None
        r, k = found
        events = [e for e in seen.last_batch_events() if e.reported is not None and e.reported < 1]
        if not events:
            return None
        height = float(np.median([e.reported for e in events if e.reported]))
        rows = [
            Evidence(
                statement="micro-batches in the last window of an epoch",
                observed=f"{r} of {k}",
                expected=f"{k}",
            ),
            Evidence(
                statement="logged loss of that step over its level",
                observed=f"{height:.3g}",
                expected=f"{r / k:.3g} if it is divided by {k}, 1 if by {r}",
            ),
        ]
        norm = _gradient(seen)
        if norm is not None:
            rows.append(
                Evidence(
                    statement="gradient norm of that step over its level",
                    observed=f"{norm:.3g}",
                    expected=f"about {r / k:.3g} if it is divided by {k}, 1 or more if by {r}",
                )
            )
        made = seen.accumulation.convention if seen.accumulation is not None else None
        if made is not None and made.noise is not None and made.rival is not None:
            other = r if made.divides == "nominal" else k
            rows.append(
                Evidence(
                    statement="replays of the cut window and the steps after it, relative difference to the record",
                    observed=f"{made.noise:.1g} when divided by {k if other == r else r}, {made.rival:.1g} by {other}",
                    expected="0 for the number that the loop divides by",
                )
            )
            if made.certain and made.divides != "nominal":
                return suspect(self, events, rows, outcome="refuted", reason=f"the loop divides by {r}, its own number")
        if abs(np.log(height * k / r)) > TOLERANCE * abs(np.log(r / k)):
            return suspect(
                self,
                events,
                rows,
                outcome="refuted",
                reason=f"the step lies at {height:.2g} of its level, not {r / k:.2g}",
            )
        return suspect(self, events, rows, identity=made is not None and made.certain)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import RescaleLoss

        r, k = _window(seen) or (1, 1)
        return [RescaleLoss(lambda at: k / r, f"its losses multiplied by {k}/{r}")]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import RescaleLoss

        r, k = _window(seen) or (1, 1)
        return RescaleLoss(lambda at: k / r, "that factor on the ordinary step before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        r, k = _window(seen) or (1, 1)
        return (
            f"Your loss dips on the last step of every epoch: its accumulation window has {r} of {k} micro-batches, but is "
            f"divided by {k}, so that loss and gradient are {r}/{k} of what they should be."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        _, k = _window(seen) or (1, 1)
        return [
            ScratchCure(
                cure=Cure(
                    words="divide by the micro-batches that the window has",
                    code={
                        "torch": f"left = len(loader) % {k} or {k}\n"
                        f"n = left if index >= len(loader) - left else {k}\n(loss / n).backward()",
                        "keras": f"loader = loader.take(len(loader) // {k} * {k})   # gradient_accumulation_steps={k}",
                        "lightning": f"Trainer(accumulate_grad_batches={k}, limit_train_batches={k} * (n_batches // {k}))",
                        "hf": "Trainer divides by the window's own number of batches",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words=f"let the epoch have a multiple of {k} micro-batches",
                    code={"torch": f"itertools.islice(loader, len(loader) // {k} * {k})"},
                    applicability="safe",
                )
            ),
        ]


def _window(seen: Observation) -> tuple[int, int] | None:
    """(r, k): micro-batches of an epoch's last window, and of an ordinary one; None where it is whole."""
    run = seen.run
    k, size = run.facts.get("accumulate"), run.facts.get("batch_size")
    if not isinstance(k, int) or k < 2 or run.n_samples is None or run.index is None or not run.steps_per_epoch:
        return None
    last = run.n_samples[run.index == run.steps_per_epoch - 1]
    if not len(last) or run.batch_size is None:
        return None
    micro = size if isinstance(size, int) and size > 0 else run.batch_size // k
    r = -(-int(np.median(last)) // max(1, micro))
    return (r, k) if 0 < r < k else None


def _gradient(seen: Observation) -> float | None:
    """Median gradient norm of the epochs' last steps over that of the others; None where they were not measured."""
    run = seen.run
    norms = run.signals.get("gradient_norm")
    if norms is None or run.index is None or not run.steps_per_epoch:
        return None
    rows = np.searchsorted(run.step, norms.step)
    last = run.index[np.minimum(rows, len(run) - 1)] == run.steps_per_epoch - 1
    finite = np.isfinite(norms.value)
    here, others = norms.value[last & finite], norms.value[~last & finite]
    if len(here) < 2 or not len(others) or np.median(others) <= 0:
        return None
    return float(np.median(here) / np.median(others))
