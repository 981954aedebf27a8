"""Reads what W&B keeps on this machine: the `run-<id>.wandb` of an (offline) run, or its folder.

The file is a log in blocks of 32 KiB (as LevelDB writes it) of Record messages; the field `history` holds one row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.logs import settings
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.protobuf import fields, signed
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Note, Run

NAME = "wandb"
MAGIC = b":W&B"
BLOCK = 32_768
HISTORY, EXIT, ITEM, STEP = 2, 18, 1, 2
CONFIG, RUN, OF_RUN = 5, 17, 4  # field numbers of wandb_internal.proto
FULL, LAST = 1, 4


def sniff(source: Source) -> float:
    if source.is_folder:
        return 1.0 if _file_in(source.path) is not None else 0.0
    return 1.0 if source.head.startswith(MAGIC) else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of a .wandb file.

    Raises:
        UnreadableRun: it holds no history.
    """
    if source.is_folder:
        path = _file_in(source.path)
        assert path is not None, "sniff has found it"
        source = Source(path)
    rows: list[dict[str, float]] = []
    config: dict[str, object] = {}
    notes, ended = [], False
    try:
        for record in _records(source.content):
            for n, _, value in fields(record):
                if n == HISTORY and isinstance(value, bytes) and (row := _row(value)):
                    rows.append(row)
                if n == CONFIG and isinstance(value, bytes):
                    config.update(_config(value))
                elif n == RUN and isinstance(value, bytes):
                    for k, _, held in fields(value):
                        config.update(_config(held) if k == OF_RUN and isinstance(held, bytes) else {})
                ended |= n == EXIT
    except ValueError as error:
        notes.append(
            Note(
                id="truncated-tail",
                text=f"the file is damaged or still being written ({error}); what was before is here",
            )
        )
    if not ended and not notes:
        text = "the run has not ended yet, or was killed; its last steps may not be written"
        notes.append(Note(id="truncated-tail", text=text))
    if not rows:
        raise UnreadableRun(f"{source.name} holds no history; write wandb.log({{'loss': loss}}) in the training")
    found, n = columns(rows)
    asked = replace(asked, beside=settings.of_values(config, "the run's config") or asked.beside)
    names = [name for name in ("trainer/global_step", "train/global_step", "_step") if name in found]
    made = Table(columns=found, n_rows=n, roles={"step": names[0]} if names else {}, notes=tuple(notes))
    return runs([made], source=source.name, reader=NAME, asked=asked)


def _file_in(folder: Path) -> Path | None:
    found = sorted(folder.glob("run-*.wandb"))
    return found[0] if found else None


def _records(raw: bytes) -> Iterator[bytes]:
    """The records of the log; those that were cut into pieces are put together."""
    at, parts = 7, []  # after ":W&B", a magic number and a version
    while at + 7 <= len(raw):
        left = BLOCK - at % BLOCK
        if left < 7:  # the rest of a block is empty
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", raw, at)
        if kind == 0 and size == 0:
            return
        end = at + 7 + size
        if end > len(raw):
            raise ValueError("it ends within a record")
        parts.append(raw[at + 7 : end])
        at = end
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def _row(history: bytes) -> dict[str, float]:
    row: dict[str, float] = {}
    for n, _, value in fields(history):
        if n == ITEM and isinstance(value, bytes):
            name, held = _item(value)
            if isinstance(held, dict):
                row.update(_unfolded(held, f"{name}/"))
            elif (v := number(held)) is not None:
                row[name] = v
        elif n == STEP and isinstance(value, bytes):
            row.setdefault(
                "_step", float(next((signed(v) for k, _, v in fields(value) if k == 1 and isinstance(v, int)), 0))
            )
    return row


def _config(data: bytes) -> dict[str, object]:
    """What a ConfigRecord sets."""
    return dict(_item(value) for n, _, value in fields(data) if n == ITEM and isinstance(value, bytes))


def _item(data: bytes) -> tuple[str, object]:
    """Name and value: as JSON text in older versions, typed in newer ones."""
    name, nested, held = "", [], None
    for n, kind, value in fields(data):
        if n == 1 and isinstance(value, bytes):
            name = value.decode("utf-8", "replace")
        elif n == 2 and isinstance(value, bytes):
            nested.append(value.decode("utf-8", "replace"))
        elif n == 5 and isinstance(value, int):
            held = signed(value)
        elif n == 6 and kind == 1:
            held = value
        elif n in (8, 16) and isinstance(value, bytes):
            try:
                held = json.loads(value)
            except ValueError:
                held = None
    if isinstance(held, str) and held in ("NaN", "Infinity", "-Infinity"):
        held = float(str(held))
    return name or "/".join(nested), held


def _unfolded(held: dict[str, object], under: str) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, value in held.items():
        if isinstance(value, dict):
            row.update(_unfolded(value, f"{under}{name}/"))
        elif (v := number(value)) is not None:
            row[f"{under}{name}"] = v
    return row
