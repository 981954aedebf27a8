"""Lines that a training prints: the numbers in them, by the names before them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Note

NUMBER = r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)\b"
PAIR = re.compile(rf"([A-Za-z_][\w./\- ]*?)\s*[:=]\s*({NUMBER})(?![\w.:/\-])", re.IGNORECASE)
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TRACEBACK = re.compile(r"^\s*(Traceback \(most recent call last\)|[\w.]*(?:Error|Exception|Interrupt)\b.*:)")


def pairs(text: str) -> dict[str, float]:
    """The numbers of a line by their names: `loss: 1.5  lr: 1e-3` gives both."""
    found = {}
    for name, value in PAIR.findall(COLOURS.sub("", text)):
        held = number(value)
        if held is not None:
            found[name.strip().split("  ")[-1].strip()] = held
    return found


def many(source: Source, pattern: re.Pattern[str], holds: str, least: int = 2) -> bool:
    """Whether a text holds so many matches of a pattern.

    Args:
        holds: what every match holds. A large table has it nowhere, and is then not searched for the pattern, which
            takes up to twenty times as long.
    """
    if source.is_folder or not source.is_text or source.text.count(holds) < least:
        return False
    return len(list(islice(pattern.finditer(source.text), least))) == least


def table(rows: Sequence[Mapping[str, float]], source: Source, **parts: object) -> Table:
    """The table of a printed log, with what its text says about its end."""
    found, n = columns(rows)
    notes = [*source.notes, *ending(source)]
    return Table(columns=found, n_rows=n, notes=tuple(notes), **parts)  # type: ignore[arg-type]


def ending(source: Source) -> list[Note]:
    """A note where the text ends in a traceback: the training was killed or failed."""
    tail = source.lines[-60:]
    if not any("Traceback (most recent call last)" in line for line in source.lines[-400:]):
        return []
    last = next((line.strip() for line in reversed(tail) if TRACEBACK.match(line)), "")
    last = last or next((line.strip() for line in reversed(tail) if line.strip()), "")
    shown = " ".join(last.split())[:100]
    return [Note(id="truncated-tail", text=f"the log ends in a traceback ({shown}): the training was stopped there")]
