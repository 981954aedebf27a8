"""Reads what nanoGPT prints: `iter 10: loss 3.21, time 250.00ms, mfu 10.00%`, and `step 250: train loss 3.2, val loss 3.3`.

The loss of an iteration is that of its last micro-step on rank 0; the other is a mean over evaluation batches.
"""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import NUMBER, many, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Note, Run

NAME = "nanogpt"
ITERATION = re.compile(rf"^iter (\d+): loss ({NUMBER}), time ", re.MULTILINE)
EVALUATION = re.compile(rf"^step (\d+): train loss ({NUMBER}), val loss ({NUMBER})", re.MULTILINE)


def sniff(source: Source) -> float:
    return 0.95 if many(source, ITERATION, ": loss ") or many(source, EVALUATION, ": train loss ") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows: list[dict[str, float]] = []
    for line in source.lines:
        if (match := ITERATION.match(line)) is not None:
            rows.append({"iter": float(match[1]), "loss": number(match[2]) or 0.0})
        elif (match := EVALUATION.match(line)) is not None:
            rows.append({"iter": float(match[1]), "train loss": float(match[2]), "val loss": float(match[3])})
    made = table(rows, source, roles={"step": "iter"}, zero=0)
    text = "nanoGPT prints the loss of the last micro-step on rank 0, not the mean over all of them"
    local = any("loss" in row for row in rows)
    found = runs([made], source=source.name, reader=NAME, asked=asked)
    return tuple(_noted(run, Note(id="rank-local", text=text)) if local else run for run in found)


def _noted(run: Run, note: Note) -> Run:
    from dataclasses import replace

    return replace(run, notes=(*run.notes, note))
