"""Rows of an SQLite file that another tool keeps; of a damaged file, the rows before the damage."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from whyspike.errors import UnreadableRun
from whyspike.logs.source import Source
from whyspike.types import Note

MAGIC = b"SQLite format 3\x00"


def select(source: Source, query: str) -> tuple[list[tuple[Any, ...]], list[Note]]:
    """The rows of a query, and a note where the file ends them too early. Nothing is written.

    Raises:
        UnreadableRun: the file is damaged so that it gives no row.
    """
    rows: list[tuple[Any, ...]] = []
    try:
        with closing(_opened(source)) as database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            rows.extend(database.execute(query))
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        if not rows:
            raise UnreadableRun(
                f"{source.name} is a database that cannot be read ({error}); a copy made while nothing writes to it is "
                "whole"
            ) from error
        text = f"the database is damaged ({error}); what was read before it is here"
        return rows, [Note(id="truncated-tail", text=text)]
    return rows, []


def _opened(source: Source) -> sqlite3.Connection:
    path = Path(source.path)
    if path.is_file():
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    made = sqlite3.connect(":memory:")  # standard input
    made.deserialize(source.content)
    return made
