from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.plotted import Plotted


class NanFilteredLog(Cause):
    """a logger that hides losses which are not finite.

    What happens:
        The loss of some steps is nan or infinite, and the logger drops it, or writes something finite in its place. The
        curve goes on as if nothing had happened, with a gap or a bump at most, while the steps behind it are skipped,
        or have damaged the network.

    How it looks:
        A curve without a single nan over a training that has many. Transformers' Trainer does it unless told otherwise
        (`logging_nan_inf_filter`): a bad loss is replaced by the mean of its window so far.

    How we test it:
        The record holds the loss of every step. The logged number is computed from it, with the bad losses dropped, or
        replaced in the ways that loggers have; the right way gives the number to its last digit.

    What to do:
        Switch the filter off, or count what it hides. Then look for what makes the loss nan: that is another cause.

    References:
        transformers, `TrainingArguments.logging_nan_inf_filter` (on by default) and `Trainer._inner_training_loop`.
    """

    family = "scale"
    aliases = ("logging_nan_inf_filter", "hidden-nan")
    rank = 40
    title = "the logger hides losses that are not finite"

    def signature(self, seen: Observation) -> Suspicion | None:
        found = _hiding(seen)
        if found is None:
            return None
        import numpy as np

        from whyspike.signals import logged

        bad = int((~np.isfinite(seen.run.loss)).sum())
        value = logged(seen.run)[found.name].value
        evidence = [
            Evidence(
                statement=f"values of {found.name} that are not finite",
                observed=f"{int((~np.isfinite(value)).sum()):,} of {len(value):,}",
                expected=f"some: {bad:,} of the {len(seen.run):,} recorded losses are not finite",
            ),
            found.evidence,
        ]
        return suspect(self, (), evidence, identity=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = _hiding(seen)
        if found is None:
            return super().sentence(seen, events)
        import numpy as np

        bad = int((~np.isfinite(seen.run.loss)).sum())
        return (
            f"{bad:,} of {len(seen.run):,} losses are not finite, and the logged {found.name} does not show it: it is "
            f"{found.words}. What makes them so is another question."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        cure = Cure(
            words="log what is not finite, or count it; then look for its cause",
            code={
                "torch": "bad += int(not torch.isfinite(loss)); log(train_loss=loss.item(), bad_losses=bad)",
                "keras": "model.fit(..., callbacks=[keras.callbacks.TerminateOnNaN()])",
                "hf": "TrainingArguments(..., logging_nan_inf_filter=False)",
                "lightning": "Trainer(..., detect_anomaly=True)   # slow: it stops where the first nan is made",
            },
            applicability="safe",
        )
        return [ScratchCure(cure=cure)]


def _hiding(seen: Observation) -> Plotted | None:
    """The logged number in which losses that are not finite were dropped or replaced."""
    return next((f for f in seen.plotted.values() if f.treatment), None)
