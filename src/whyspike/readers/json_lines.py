"""Reads JSON lines: one record in every row, as W&B's history, detectron2's metrics.json and many a script have it."""

from __future__ import annotations

import json

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns
from whyspike.readers.metric_json import flat
from whyspike.types import Note, Run

NAME = "json-lines"
MOSTLY = 0.5  # of the rows are records; the others are what a script printed beside them


def sniff(source: Source) -> float:
    lines = source.first_lines[:50]
    records = sum(_record(line) is not None for line in lines)
    return 0.75 if records >= max(2, MOSTLY * len(lines)) else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The runs of the records.

    Raises:
        UnreadableRun: none of their numbers is a loss.
    """
    lines = [line for line in source.lines if line.strip()]
    records = [record for line in lines if (record := _record(line)) is not None]
    notes = list(source.notes)
    if lines and lines[-1].lstrip().startswith("{") and _record(lines[-1]) is None:
        notes.append(Note(id="truncated-tail", text="the last record is cut off; it was left out"))
    rows = flat(records)
    if not rows:
        raise UnreadableRun(f'{source.name} holds records without a number; {{"step": 1, "loss": 2.5}} would be one')
    found, n = columns(rows)
    return runs([Table(columns=found, n_rows=n, notes=tuple(notes))], source=source.name, reader=NAME, asked=asked)


def _record(line: str) -> dict[str, object] | None:
    line = line.strip()
    if not line.startswith("{"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
