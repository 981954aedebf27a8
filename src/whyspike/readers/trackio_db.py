"""Reads trackio's database: the table `metrics` with run_name, step and a JSON object of numbers in every row."""

from __future__ import annotations

import json

from whyspike.errors import UnreadableRun
from whyspike.logs import sqlite
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.readers.metric_json import flat
from whyspike.types import Run

NAME = "trackio"


def sniff(source: Source) -> float:
    if source.is_folder or not source.head.startswith(sqlite.MAGIC):
        return 0.0
    return (
        0.9
        if b"run_name" in source.content and b"metrics" in source.content and b"latest_metrics" not in source.content
        else 0.0
    )


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """All runs of the database.

    Raises:
        UnreadableRun: there is none with a loss.
    """
    by_run: dict[str, list[dict[str, float]]] = {}
    found, notes = sqlite.select(source, "SELECT run_name, step, metrics FROM metrics ORDER BY run_name, id")
    for name, step, text in found:
        try:
            rows = flat([json.loads(text)])
        except (ValueError, TypeError, RecursionError):
            continue  # a row that was written half
        if (at := number(step)) is not None:
            by_run.setdefault(str(name), []).extend({"step": at, **row} for row in rows)
    tables = []
    for name, rows in by_run.items():
        held, n = columns(rows)
        name = name if len(by_run) > 1 else ""
        tables.append(Table(columns=held, n_rows=n, name=name, roles={"step": "step"}, notes=tuple(notes)))
    if not tables:
        raise UnreadableRun(f"{source.name} holds no run; write trackio.log({{'loss': loss}}) in the training")
    return runs(tables, source=source.name, reader=NAME, asked=asked)
