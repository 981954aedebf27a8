"""Reads CSV and TSV with a header: exports of W&B and trackio, Lightning's metrics.csv, Keras' CSVLogger, any other.

W&B names a column `run - metric` and adds `run - metric__MIN` and `__MAX`; each run becomes a run of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Column, Table, number
from whyspike.types import Note, Run

NAME = "csv"
DELIMITERS = ",\t;|"


def sniff(source: Source) -> float:
    lines = [line for row in source.first_lines[:50] for line in row.splitlines() if not line.startswith("#")]
    if len(lines) < 2:
        return 0.0
    delimiter = _delimiter(lines[0])
    if delimiter is None:
        return 0.0
    rows = list(csv.reader(lines, delimiter=delimiter))
    header, body = rows[0], rows[1:]
    if any(number(name) is not None for name in header) or sum(bool(name.strip()) for name in header) < 2:
        return 0.0  # a header names its columns
    same = sum(len(row) == len(header) for row in body) >= 0.8 * len(body)
    numbers = sum(any(_value(cell, delimiter) is not None for cell in row) for row in body) >= 0.8 * len(body)
    return 0.8 if same and numbers and body else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The runs of the table.

    Raises:
        UnreadableRun: there is no row of numbers, or none of the columns is a loss.
    """
    text = "\n".join(line for line in source.text.splitlines() if not line.startswith("#"))
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = _delimiter(first) or ","
    rows = [
        row for row in csv.reader(io.StringIO(text.strip("\n")), delimiter=delimiter) if any(c.strip() for c in row)
    ]
    header = [name.strip() for name in rows[0]]
    notes = list(source.notes)
    body = [row for row in rows[1:] if row != rows[0]]  # a header written again by a second run
    if body and len(body[-1]) < len(header):
        notes.append(Note(id="truncated-tail", text="the last row is cut off; it was left out"))
        body.pop()
    found = _columns(header, body, delimiter)
    if not found:
        raise UnreadableRun(f"{source.name} is a table without a number; a curve needs a step and a loss in every row")
    tables = _of_runs(found, len(body), notes)
    return runs(tables, source=source.name, reader=NAME, asked=asked)


def _delimiter(line: str) -> str | None:
    counts = {d: line.count(d) for d in DELIMITERS}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] else None


def _value(cell: str, delimiter: str) -> float | None:
    if delimiter == ";" and "," in cell and "." not in cell:
        cell = cell.replace(",", ".")  # where a decimal comma is the custom, the columns are separated by semicolons
    return number(cell)


def _columns(header: Sequence[str], body: Sequence[Sequence[str]], delimiter: str) -> dict[str, Column]:
    made: dict[str, Column] = {}
    for j, name in enumerate(header):
        pairs = [(k, v) for k, row in enumerate(body) if j < len(row) and (v := _value(row[j], delimiter)) is not None]
        if pairs and (name or j == 0):
            at, values = zip(*pairs, strict=True)
            made[name or "row"] = Column(np.array(at, dtype=np.int64), np.array(values))
    made.pop("row", None)  # the index that pandas writes
    return made


def _of_runs(found: Mapping[str, Column], n_rows: int, notes: Sequence[Note]) -> list[Table]:
    """One table, or one for each run where the columns are named `run - metric` as W&B does."""
    named = {name: name.rsplit(" - ", 1) for name in found if " - " in name}
    names = list(dict.fromkeys(run for run, _ in named.values()))
    if not names:
        return [Table(columns=found, n_rows=n_rows, notes=tuple(notes))]
    shared = {name: c for name, c in found.items() if name not in named}
    tables = []
    for run in names:
        own = {metric: found[name] for name, (of, metric) in named.items() if of == run}
        kept = {m: c for m, c in own.items() if not m.endswith(("__MIN", "__MAX"))}
        averaged = _binned(own)
        tables.append(
            Table(
                columns={**shared, **kept},
                n_rows=n_rows,
                name=run if len(names) > 1 else "",
                notes=tuple(notes),
                averaged=averaged,
                facts={"run_name": run},
            )
        )
    return tables


def _binned(own: Mapping[str, Column]) -> str | None:
    """What W&B's export says where it has put several steps into one value: their smallest and largest differ."""
    for name, column in own.items():
        low, high = own.get(f"{name}__MIN"), own.get(f"{name}__MAX")
        if low is not None and high is not None and len(low.value) == len(high.value) == len(column.value):
            apart = int(np.sum(low.value != high.value))
            if apart:
                n = len(column.value)
                return f"{apart} of {n} values are means over several steps (the export's MIN and MAX differ)"
    return None
