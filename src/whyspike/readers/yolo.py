"""Reads Ultralytics' results.csv: one row for each epoch, a column for each part of the loss and none for their sum."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Run

NAME = "ultralytics"
FILE = "results.csv"


def sniff(source: Source) -> float:
    if source.is_folder:
        return 0.9 if (source.path / FILE).is_file() and sniff(Source(source.path / FILE)) else 0.0
    if not source.first_lines:
        return 0.0
    names = [name.strip() for name in source.first_lines[0].split(",")]
    parts = [name for name in names if name.startswith("train/") and name.endswith("_loss")]
    return 0.95 if "epoch" in names and len(parts) > 1 else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    if source.is_folder:
        source = Source(Path(source.path) / FILE)
    rows = []
    for record in _records(source):
        row = {k.strip(): v for k, text in record.items() if k and (v := number(text)) is not None}
        row["train/loss"] = sum(v for k, v in row.items() if k.startswith("train/") and k.endswith("_loss"))
        rows.append(row)
    found, n = columns(rows)
    made = Table(columns=found, n_rows=n, roles={"epoch": "epoch", "loss": "train/loss"}, notes=source.notes)
    return runs([made], source=source.name, reader=NAME, asked=asked)


def _records(source: Source) -> Iterator[dict[str, str]]:
    try:
        yield from csv.DictReader(source.lines)
    except csv.Error as error:
        raise UnreadableRun(f"{source.name} is a table that is damaged ({error})") from error
