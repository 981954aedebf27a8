"""Reading a run: one file in this folder is one format.

A reader has a `NAME`, `sniff(source) -> float` (how surely the source is of its format, 0 to 1) and
`read(source, asked) -> tuple[Run, ...]`. The surest reader reads. Nothing is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

from whyspike.errors import UnreadableRun
from whyspike.logs import settings
from whyspike.logs.assemble import Asked
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

DEPTH = 4  # folders inside folders that are looked into
SURE = 0.5  # of a file in a folder: below it, it is some text


class Reader(Protocol):
    """What a file of this folder offers."""

    NAME: str

    def sniff(self, source: Source) -> float:
        """How surely the source is of this format: 0 not at all, 1 beyond doubt."""
        ...

    def read(self, source: Source, asked: Asked) -> tuple[Run, ...]:
        """The runs in it."""
        ...


@cache
def readers() -> tuple[Reader, ...]:
    """Every reader, in the order of their names."""
    from whyspike.readers import runfolder

    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    others = [importlib.import_module(f"{__name__}.{name}") for name in names if name != "runfolder"]
    return (runfolder.READER, *others)  # type: ignore[return-value]


def read(path: Path) -> Run:
    """Read the one run of a path, whatever its format; the latest where there are several.

    Raises:
        UnreadableRun: nothing is there, or no reader knows what is there.
    """
    return read_all(Source(path))[-1]


def read_all(
    source: Source, asked: Asked | None = None, left_out: list[UnreadableRun] | None = None
) -> tuple[Run, ...]:
    """Read the runs of a source, whatever its format.

    Args:
        left_out: gets what is said of logs in a folder that could not be read, beside others that could.

    Raises:
        UnreadableRun: nothing is there, no reader knows what is there, or it holds no curve.
    """
    if source.name != "standard input" and not source.path.exists():
        raise UnreadableRun(
            f"{source.name} does not exist; give the folder of a recorded run, e.g. whyspike-runs/<name>-<time>, or "
            "the log of a training"
        )
    reader = _surest(source)
    if reader is not None:
        return _read(reader, source, asked or Asked())
    left_out = [] if left_out is None else left_out
    found = _inside(source, asked or Asked(), left_out) if source.is_folder else ()
    if found:
        return found
    raise left_out[0] if left_out else UnreadableRun(_unknown(source))


def _read(reader: Reader, source: Source, asked: Asked) -> tuple[Run, ...]:
    """The runs of a source, with what the settings beside it say."""
    return reader.read(source, replace(asked, beside=settings.beside(source)))


def _surest(source: Source, least: float = 0.0) -> Reader | None:
    """The reader that is surest of a source, and surer than `least`."""
    sure, best = max(((reader.sniff(source), -k) for k, reader in enumerate(readers())), default=(0.0, 0))
    return readers()[-best] if sure > least else None


def _inside(source: Source, asked: Asked, left_out: list[UnreadableRun], depth: int = DEPTH) -> tuple[Run, ...]:
    """The runs of everything in a folder that a reader is sure of, in the order of their names."""
    made: list[Run] = []
    for path in sorted(source.path.iterdir()):
        if path.name.startswith(".") or path.is_symlink():  # W&B links to its latest run
            continue
        part = Source(path)
        try:
            reader = _surest(part, SURE)
            if reader is not None:
                made += _read(reader, part, asked)
            elif part.is_folder and depth > 1:
                made += _inside(part, asked, left_out, depth - 1)
        except UnreadableRun as error:  # it is damaged, or a table of something else that lies beside the logs
            left_out.append(error)
    return tuple(made)


def _unknown(source: Source) -> str:
    """What was found, what is needed, what to write."""
    if source.is_folder:
        inside = sorted(p.name for p in source.path.iterdir())
        what = (
            f"a folder with {', '.join(inside[:5])}{' and more' if len(inside) > 5 else ''}"
            if inside
            else "an empty folder"
        )
    elif not source.content:
        what = "an empty file"
    elif not source.is_text:
        what = "a binary file"
    else:
        line = next((line for line in source.lines if line.strip()), "").strip()
        what = f"text that begins with {line[:60]!r}"
    first = next((line.strip() for line in source.first_lines), "") if not source.is_folder else ""
    cells = [cell for cell in re.split(r"[,;|\s]+", first) if cell]
    if cells and all(number(cell) is not None for cell in cells):
        names = ["step", "loss", "lr", "epoch"][: len(cells)] if len(cells) > 1 else ["loss"]
        return (
            f"{source.name} is {what}: numbers without a name. Write the names of its columns into the first line, e.g. "
            f"{','.join(names)}"
        )
    return (
        f"{source.name} is {what}, and holds no loss curve that a reader knows; it needs a step and a loss in every "
        "row, e.g. a CSV file with the header step,loss"
    )
