"""Reads trackio's database: the table `metrics` with run_name, step and a JSON object of numbers in every row."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns
from whyspike.readers.metric_json import flat
from whyspike.types import Run

NAME = "trackio"


def sniff(source: Source) -> float:
    if source.is_folder or not source.head.startswith(b"SQLite format 3\x00"):
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
    with closing(sqlite3.connect(f"file:{Path(source.path).resolve()}?mode=ro", uri=True)) as database:
        for name, step, text in database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY run_name, id"):
            rows = flat([json.loads(text)])
            by_run.setdefault(str(name), []).extend({"step": float(step), **row} for row in rows)
    tables = []
    for name, rows in by_run.items():
        found, n = columns(rows)
        tables.append(Table(columns=found, n_rows=n, name=name if len(by_run) > 1 else "", roles={"step": "step"}))
    if not tables:
        raise UnreadableRun(f"{source.name} holds no run; write trackio.log({{'loss': loss}}) in the training")
    return runs(tables, source=source.name, reader=NAME, asked=asked)
