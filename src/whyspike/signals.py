"""Which signals of a run its user logged, and which the recorder measured."""

from __future__ import annotations

from collections.abc import Mapping

from whyspike.types import Run, Series

MEASURED = frozenset({"probe", "gradient_norm", "update_norm", "weight_norm", "clip_norm", "clip_max_norm", "loss"})
OWN = "log/"  # what the user logs under a name of MEASURED


def logged(run: Run) -> Mapping[str, Series]:
    """The signals that the user logged, by the names that were given."""
    return {
        name.removeprefix(OWN): series
        for name, series in run.signals.items()
        if name.startswith(OWN) or (name not in MEASURED and name.split("/")[0] not in MEASURED)
    }
