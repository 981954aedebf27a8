"""Logs that keep every metric by itself, each with steps of its own: TensorBoard, MLflow, trackio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whyspike.logs import roles
from whyspike.logs.assemble import Asked
from whyspike.logs.table import Column, Table
from whyspike.types import Note

Points = Sequence[tuple[float, float]]  # (step, value), in the order they were written


def table(
    metrics: Mapping[str, Points],
    source: str,
    asked: Asked,
    *,
    name: str = "",
    notes: Sequence[Note] = (),
    **parts: Any,
) -> Table:
    """The table whose rows are the points of the loss; another metric stands in the row of the latest loss before it.

    What goes back in the steps of the loss is thus never the step of another metric (a validation counted in epochs).

    Raises:
        UnreadableRun: none of the metrics is called a training loss, or none of the name that was asked for.
    """
    held = {k: np.array(v, dtype=np.float64).reshape(-1, 2) for k, v in metrics.items() if len(v)}
    plain = {k: Column(np.arange(len(v)), v[:, 1]) for k, v in held.items()}
    loss = roles.choose(
        Table(columns=plain, n_rows=max((len(v) for v in held.values()), default=0)), source, asked.loss
    )
    steps = held[loss.loss][:, 0]
    order = np.argsort(steps, kind="stable")
    found = {"step": Column(np.arange(len(steps)), steps), loss.loss: plain[loss.loss]}
    for metric, points in held.items():
        if metric == loss.loss:
            continue
        place = np.searchsorted(steps[order], points[:, 0], side="right") - 1
        row = order[np.maximum(place, 0)]
        _, last = np.unique(row[::-1], return_index=True)  # the latest value of each row
        keep = len(row) - 1 - last
        found[metric if metric != "step" else "logged step"] = Column(row[keep], points[keep, 1])
    return Table(
        columns=found,
        n_rows=len(steps),
        name=name,
        roles={"step": "step", "loss": loss.loss},
        notes=tuple(notes),
        **parts,
    )
