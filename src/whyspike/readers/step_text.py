"""Reads text of the form `step loss` or `step key value`, one number in a row: build-nanogpt, torchtitan, …; or of losses alone, where header or file are called so.

Columns are separated by blanks, tabs or commas; rows that look otherwise are left out, as long as they are few.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Run

NAME = "step-text"
MOSTLY = 0.9  # of the rows have the form
NUMBER = r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|inf)"
ONE = re.compile(rf"\s*{NUMBER}\s*", re.IGNORECASE)
TWO = re.compile(rf"\s*(\d+)[\s,;:]+({NUMBER})\s*", re.IGNORECASE)
THREE = re.compile(rf"\s*(\d+)[\s,;:]+([A-Za-z][\w./ -]*?)[\s,;:=]+({NUMBER})\s*", re.IGNORECASE)


def sniff(source: Source) -> float:
    lines = source.first_lines[:400]
    if _alone(source, lines):
        return 0.55
    return 0.6 if len(lines) > 1 and _form(lines) is not None else 0.0


def _alone(source: Source, lines: Sequence[str]) -> bool:
    """Whether the rows are bare numbers, and the header or the name of the file says that they are losses."""
    if len(lines) < 3:
        return False
    head = lines[0].strip() if number(lines[0]) is None else ""
    body = lines[1:] if head else lines
    called = head or source.path.name
    return "loss" in called.lower() and all(ONE.fullmatch(line) is not None for line in body)


def _form(lines: Sequence[str]) -> re.Pattern[str] | None:
    for form in (THREE, TWO):
        if lines and sum(form.fullmatch(line) is not None for line in lines) >= MOSTLY * len(lines):
            return form
    return None


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The runs of the text.

    Raises:
        UnreadableRun: none of its columns is a loss.
    """
    lines = [line for line in source.lines if line.strip()]
    if _alone(source, lines[:400]):
        rows = [{"loss": v} for line in lines if (v := number(line)) is not None]
        found, n = columns(rows)
        return runs([Table(columns=found, n_rows=n, notes=source.notes)], source=source.name, reader=NAME, asked=asked)
    form = _form(lines)
    if form is None:
        raise UnreadableRun(f"{source.name} does not keep to the form `step loss` or `step key value`")
    rows = []
    for line in lines:
        match = form.fullmatch(line)
        if match is None:
            continue
        step, *key, value = match.groups()
        held = number(value)
        if held is not None:
            rows.append({"step": float(step), key[0] if key else "loss": held})
    found, n = columns(rows)
    table = Table(columns=found, n_rows=n, roles={"step": "step"}, notes=source.notes)
    return runs([table], source=source.name, reader=NAME, asked=asked)
