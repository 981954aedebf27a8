"""Reads CSV and TSV with a header (or columns that blanks separate): exports of W&B and trackio, Lightning's metrics.csv, Keras' CSVLogger, any other.

W&B names a column `run - metric` and adds `run - metric__MIN` and `__MAX`; each run becomes a run of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.form import count
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Column, Table, number
from whyspike.types import Note, Run

NAME = "csv"
DELIMITERS = ",\t;|"
INDEX = "row"
HEAD = 65_536  # characters that the header is in
QUICK = 2_000_000  # characters of a table that is parsed as a whole


def sniff(source: Source) -> float:
    lines = [line for row in source.first_lines[:50] for line in row.splitlines() if not line.startswith("#")]
    if len(lines) < 2:
        return 0.0
    lines = _of_blanks(lines)
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
    text = source.text
    if "#" in text or "\r" in text:
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    text = text.strip("\n")
    first = next((line for line in text[:HEAD].splitlines() if line.strip()), "")
    if _delimiter(first) is None:
        text = "\n".join(_of_blanks(text.splitlines()))
        first = next((line for line in text[:HEAD].splitlines() if line.strip()), "")
    delimiter = _delimiter(first) or ","
    notes = list(source.notes)
    table = _quick(text, delimiter) if len(text) > QUICK and '"' not in text else None
    try:
        found, n_rows, lengths = table or _careful(text, delimiter)
    except csv.Error as error:
        raise UnreadableRun(f"{source.name} is a table that is damaged ({error})") from error
    notes += _of_lengths(lengths, len(next(csv.reader([first], delimiter=delimiter), [])))
    if not found:
        raise UnreadableRun(f"{source.name} is a table without a number; a curve needs a step and a loss in every row")
    tables = _of_runs(found, n_rows, notes)
    return runs(tables, source=source.name, reader=NAME, asked=asked)


def _of_blanks(lines: Sequence[str]) -> list[str]:
    """Lines whose columns are separated by blanks, with commas there instead."""
    if any(d in line for line in lines[:50] for d in DELIMITERS):
        return list(lines)
    return [",".join(line.split()) for line in lines]


def _delimiter(line: str) -> str | None:
    counts = {d: line.count(d) for d in DELIMITERS}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] else None


def _value(cell: str, delimiter: str) -> float | None:
    if delimiter == ";" and "," in cell and "." not in cell:
        cell = cell.replace(",", ".")  # where a decimal comma is the custom, the columns are separated by semicolons
    return number(cell)


def _careful(text: str, delimiter: str) -> tuple[dict[str, Column], int, np.ndarray]:
    """Columns, rows, and how many fields each row has: cell by cell."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(c.strip() for c in row)]
    header = [name.strip() for name in rows[0]]
    body = [row for row in rows[1:] if row != rows[0]]  # a header written again by a second run
    lengths = np.array([len(row) for row in body], dtype=np.int64)
    if _cut_off(lengths, len(header)):
        body.pop()
    made: dict[str, Column] = {}
    for j, name in enumerate(header):
        pairs = [(k, v) for k, row in enumerate(body) if j < len(row) and (v := _value(row[j], delimiter)) is not None]
        if pairs and (name or j == 0):
            at, values = zip(*pairs, strict=True)
            made[name or INDEX] = Column(np.array(at, dtype=np.int64), np.array(values))
    made.pop(INDEX, None)  # the index that pandas writes
    return made, len(body), lengths


def _quick(text: str, delimiter: str) -> tuple[dict[str, Column], int, np.ndarray] | None:
    """The same for a large table without quotes: parsed by polars, and cell by cell where it finds no number."""
    import polars as pl

    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    ends = np.append(np.flatnonzero(raw == ord("\n")), len(raw))
    fields = np.diff(np.searchsorted(np.flatnonzero(raw == ord(delimiter)), ends), prepend=0) + 1
    filled = np.diff(ends, prepend=-1) > 1
    header = text[: ends[0]].split(delimiter)
    if len(set(header)) != len(header) or not filled.all():
        return None
    try:
        frame = pl.read_csv(
            raw.tobytes(), separator=delimiter, infer_schema=False, truncate_ragged_lines=True, quote_char=None,
            encoding="utf8-lossy",
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    lengths = fields[1:]
    if frame.height != len(lengths) or frame.width != len(header):
        return None
    if _cut_off(lengths, len(header)):
        frame = frame.head(-1)
    made: dict[str, Column] = {}
    for j, name in enumerate(header):
        cells = frame.to_series(j)
        numbers = cells.str.strip_chars().cast(pl.Float64, strict=False)
        values = numbers.fill_null(np.nan).to_numpy().copy()
        known = numbers.is_not_null().to_numpy().copy()
        for k in (cells.is_not_null() & ~numbers.is_not_null()).arg_true().to_list():
            v = _value(cells[k], delimiter)
            if v is not None:
                values[k], known[k] = v, True
        if known.any() and (name.strip() or j == 0):
            at = np.flatnonzero(known)
            made[name.strip() or INDEX] = Column(at, values[at])
    made.pop(INDEX, None)
    return made, frame.height, lengths


def _cut_off(lengths: np.ndarray, width: int) -> bool:
    return bool(len(lengths)) and int(lengths[-1]) < width


def _of_lengths(lengths: np.ndarray, width: int) -> list[Note]:
    """What rows with too few or too many fields say."""
    made = []
    wrong = np.flatnonzero(lengths != width)
    if _cut_off(lengths, width):
        made.append(Note(id="truncated-tail", text="the last row is cut off; it was left out"))
        wrong = wrong[:-1]
    if len(wrong):
        rows = "1 row has" if len(wrong) == 1 else f"{count(len(wrong))} rows have"
        text = (
            f"{rows} another number of fields than the header's {width} (the first: row {count(int(wrong[0]) + 2)}, with "
            f"{int(lengths[wrong[0]])}); what stands under a name was taken"
        )
        made.append(Note(id="malformed-rows", text=text))
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
