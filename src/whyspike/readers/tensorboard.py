"""Reads TensorBoard's event files, all of their points: scalars, and the tensors of one number that Keras writes.

An event file is a sequence of records: length, checksum, an Event message, checksum. A folder with event files is one
run, in the order of their times. TensorBoard's own loader keeps a sample of 10,000 scalars and of 10 tensors unless it is
told not to; here none is left out.
"""

from __future__ import annotations

import struct

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.logs import series
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.protobuf import fields, signed
from whyspike.logs.source import Source
from whyspike.types import Note, Run

NAME = "tensorboard"
PATTERN = "*tfevents*"
KINDS = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # DataType: DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64


def sniff(source: Source) -> float:
    if source.is_folder:
        return 1.0 if any(p.is_file() for p in source.path.glob(PATTERN)) else 0.0
    return (
        1.0
        if "tfevents" in source.path.name
        or source.head[24:40].startswith(b"brain.Event")
        or b"brain.Event:2" in source.head[:64]
        else 0.0
    )


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of an event file, or of all event files of a folder.

    Raises:
        UnreadableRun: they hold no scalar, or none that is called a training loss.
    """
    paths = (
        sorted((p for p in source.path.glob(PATTERN) if p.is_file()), key=lambda p: p.name)
        if source.is_folder
        else [source.path]
    )
    metrics: dict[str, list[tuple[float, float]]] = {}
    notes: list[Note] = []
    for path in paths:
        whole = _read_events(Source(path).content if source.is_folder else source.content, metrics)
        if not whole:
            notes.append(
                Note(id="truncated-tail", text=f"{path.name} ends within a record; what was before it is here")
            )
    if not metrics:
        raise UnreadableRun(
            f"{source.name} holds events without a scalar; write writer.add_scalar('train/loss', loss, step)"
        )
    made = series.table(metrics, source.name, asked, notes=notes)
    return runs([made], source=source.name, reader=NAME, asked=asked)


def _read_events(raw: bytes, metrics: dict[str, list[tuple[float, float]]]) -> bool:
    """Add the scalars of one file; False where it ends within a record."""
    at = 0
    while at + 12 <= len(raw):
        (size,) = struct.unpack_from("<Q", raw, at)
        end = at + 12 + size
        if end + 4 > len(raw):
            return False
        try:
            _read_event(raw[at + 12 : end], metrics)
        except ValueError:
            return False
        at = end + 4
    return at == len(raw)


def _read_event(data: bytes, metrics: dict[str, list[tuple[float, float]]]) -> None:
    step, summary = 0, None
    for number, kind, value in fields(data):
        if number == 2 and kind == 0 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and isinstance(value, bytes):
            summary = value
    if summary is None:
        return
    for number, _, value in fields(summary):
        if number == 1 and isinstance(value, bytes):
            _read_value(value, step, metrics)


def _read_value(data: bytes, step: int, metrics: dict[str, list[tuple[float, float]]]) -> None:
    tag, held = "", None
    for number, kind, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == 2 and kind == 5 and isinstance(value, float):
            held = value
        elif number == 8 and isinstance(value, bytes):
            held = _scalar(value)
    if tag and held is not None:
        metrics.setdefault(tag, []).append((float(step), held))


def _scalar(data: bytes) -> float | None:
    """The one number of a TensorProto; None where it holds none or several."""
    kind, values, raw, size = 0, [], b"", 1
    for number, wire, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            for _, _, dim in fields(value):
                if isinstance(dim, bytes):
                    size *= next((int(v) for n, _, v in fields(dim) if n == 1 and isinstance(v, int)), 0)
        elif number == 4 and isinstance(value, bytes):
            raw = value
        elif number in (5, 6) and isinstance(value, bytes):
            values += np.frombuffer(value, "<f4" if number == 5 else "<f8").tolist()
        elif number in (5, 6) and wire in (1, 5):
            values.append(value)
        elif number in (7, 10) and isinstance(value, int):
            values.append(float(signed(value)))
    if kind not in KINDS or size != 1:
        return None
    if raw:
        values = np.frombuffer(raw, KINDS[kind]).tolist()
    return float(values[0]) if len(values) == 1 else None
