"""What a reader hands over: the rows of a log in the order they were written, each with some named numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whyspike.types import Mark, Note


@dataclass(frozen=True)
class Column:
    """One named number: `value[k]` stands in the row `row[k]`. A value may be nan or inf, as it was logged."""

    row: np.ndarray  # int64 [K], increasing
    value: np.ndarray  # float64 [K]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one log. Columns are sparse: a row need not have them all.

    Args:
        roles: which column is the step, the loss, the epoch, the lr, where the format fixes it.
        zero: the number that the format gives the first step (0 or 1), where it fixes it.
        averaged: what a value of the loss is a mean of, in words, where the format says so.
        epoch_total: epochs that were trained, not rounded, where the format says so.
        facts: what the log says about the training.
    """

    columns: Mapping[str, Column]
    n_rows: int
    name: str = ""  # of the run, where a file or folder holds several
    roles: Mapping[str, str] = field(default_factory=dict)
    zero: int | None = None
    averaged: str | None = None
    epoch_total: tuple[float, float] | None = None  # (steps done, epochs done)
    facts: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    notes: tuple[Note, ...] = ()


def columns(rows: Iterable[Mapping[str, float]]) -> tuple[dict[str, Column], int]:
    """Columns from rows, and how many rows there were."""
    at: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    n = 0
    for n, row in enumerate(rows, 1):
        for name, value in row.items():
            at.setdefault(name, []).append(n - 1)
            values.setdefault(name, []).append(value)
    made = {k: Column(np.array(at[k], dtype=np.int64), np.array(values[k], dtype=np.float64)) for k in at}
    return made, n


_UNIT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?:%|nats?|bits?|ms|s|sec|it/s)")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")


def number(text: object) -> float | None:
    """The number that a field of a log holds; None where it holds none. `nan`, `1,234.5` and `2.5 nats` are numbers."""
    if isinstance(text, bool) or text is None:
        return None
    if isinstance(text, (int, float)):
        return float(text)
    if not isinstance(text, str):
        return None
    try:
        return float(text)
    except ValueError:
        bare = text.strip()
        if (held := _UNIT.fullmatch(bare)) is not None:
            return float(held[1])
        return float(bare.replace(",", "")) if _THOUSANDS.fullmatch(bare) else None
