"""The run folder on disk: append-only frames that survive a crash, and the results of experiments beside them.

Nothing here is pickle. Every frame goes out in one unbuffered write, so that a killed process loses at most what it
had not yet handed over, and a reader may read while the writer writes. The layout is in docs/architecture.md.
"""

from __future__ import annotations

import errno
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.types import Diagnosis, Trial

FORMAT = "whyspike-run"
VERSION = 1
HEADER, FRAMES, CAPSULES, TRIALS, DIAGNOSIS, LOG = (
    "run.json", "record.frames", "capsules", "trials.jsonl", "diagnosis.json", "whyspike.log"
)  # fmt: skip
MAGIC = b"WSPK"
_HEAD = struct.Struct("<4sII")  # magic, length of the body, crc32 of the body
MAX_FRAME = 1 << 28  # a longer length is damage


class RunFolder:
    """An open run folder, for its one writer.

    Args:
        path: the folder, made by `create`.
        max_bytes: the folder does not grow beyond this; `room` says what is left.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.written = 0  # bytes of frames
        self._header_bytes = 0
        self._capsule_bytes = 0
        self._frames = open(path / FRAMES, "ab", buffering=0)  # noqa: SIM115
        self._encode = msgspec.msgpack.Encoder().encode

    @classmethod
    def create(cls, path: Path | None, name: str, max_bytes: int, now: datetime | None = None) -> RunFolder:
        """Make the folder. An existing one is never written into: the next free number is appended.

        Args:
            path: where the caller wants it; None for `whyspike-runs/<name>-<time>`.

        Raises:
            OSError: the folder cannot be made.
        """
        stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
        wanted = path if path is not None else Path("whyspike-runs") / f"{name}-{stamp}"
        wanted.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            made = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                made.mkdir()
            except FileExistsError:
                if number == 1 and made.is_dir() and not any(made.iterdir()):
                    break  # an empty folder that the user made for us
                number += 1
                continue
            break
        return cls(made, max_bytes)

    @classmethod
    def reopen(cls, path: Path, max_bytes: int, *, resume: int) -> RunFolder:
        """Go on in an existing run folder. What a killed process left of its last frame is cut off.

        Args:
            resume: the first step that is recorded now; snapshots of later ones are deleted.

        Raises:
            UnreadableRun: there is no run in it.
            OSError: it cannot be written to.
        """
        record = path / FRAMES
        if not (path / HEADER).is_file() or not record.is_file():
            raise UnreadableRun(f"{path} is no run folder of whyspike, so that no record can go on in it")
        whole = sum(_HEAD.size + length for length in _lengths(record))
        if whole < record.stat().st_size:
            with open(record, "rb+") as file:
                file.truncate(whole)
        folder = cls(path, max_bytes)
        folder.written, folder._header_bytes = whole, (path / HEADER).stat().st_size
        for capsule in folder.capsules():
            if int(capsule.stem.split("-")[1]) >= resume:
                capsule.unlink()
        folder.room()
        folder.append({"kind": "mark", "step": resume, "name": "resumed", "data": {}})
        return folder

    def write_header(self, facts: dict[str, object]) -> None:
        """Write run.json, in one piece."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **facts}, indent=1, default=str)
        temporary = self.path / (HEADER + ".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.path / HEADER)
        self._header_bytes = len(text) + 1

    def append(self, frame: dict[str, object]) -> None:
        """Append one frame, in one write.

        Raises:
            OSError: the disk is full, or the folder is gone. What was written before stays readable.
        """
        body = self._encode(frame)
        data = _HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body
        if len(data) > self.left():
            raise OSError(errno.EDQUOT, f"the run folder has reached max_bytes={self.max_bytes:,}")
        done = self._frames.write(data)
        if done != len(data):  # a raw write may be short when the disk fills up
            raise OSError(errno.ENOSPC, f"only {done} of {len(data)} bytes could be written")
        self.written += len(data)

    def room(self) -> int:
        """Bytes left under the cap, capsules included."""
        self._capsule_bytes = sum(p.stat().st_size for p in self.capsules())
        return self.left()

    def left(self) -> int:
        """As `room`, the capsules as they were when it was last asked for."""
        return self.max_bytes - self.written - self._header_bytes - self._capsule_bytes

    def capsule_path(self, step: int) -> Path:
        return self.path / CAPSULES / f"step-{step:06d}.safetensors"

    def capsules(self) -> list[Path]:
        return capsule_paths(self.path)

    def close(self) -> None:
        self._frames.close()


def pack(values: np.ndarray) -> list[object]:
    """An array as frames hold it: [dtype, bytes]."""
    return [values.dtype.str, values.tobytes()]


def unpack(column: Sequence[Any]) -> np.ndarray:
    """The inverse of `pack`; the array is read-only."""
    return np.frombuffer(column[1], dtype=column[0])


def smallest_unsigned(largest: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds 0..largest."""
    return np.dtype(np.min_scalar_type(largest))


def frames(path: Path) -> Iterator[dict[str, Any]]:
    """The frames of a record, as far as they are whole.

    Returns (as the generator's value) a sentence when bytes after the last whole frame had to be left out, else None.
    """
    decode = msgspec.msgpack.Decoder().decode
    whole = _bodies(path)
    while True:
        try:
            yield decode(next(whole))
        except StopIteration as end:
            return end.value


def _lengths(path: Path) -> Iterator[int]:
    """The length of every whole frame's body."""
    for body in _bodies(path):
        yield len(body)


def _bodies(path: Path) -> Iterator[bytes]:
    """The bodies of whole frames; returns as `frames`."""
    with open(path, "rb") as file:
        while True:
            head = file.read(_HEAD.size)
            if not head:
                return None
            if len(head) < _HEAD.size:
                return "the last frame is cut off in its head"
            magic, length, crc = _HEAD.unpack(head)
            if magic != MAGIC or length > MAX_FRAME:
                return "a frame is damaged; it and what follows was left out"
            body = file.read(length)
            if len(body) < length:
                return "the last frame is cut off"
            if zlib.crc32(body) != crc:
                return "a frame is damaged (its checksum differs); it and what follows was left out"
            yield body


def capsule_paths(path: Path) -> list[Path]:
    """The capsules of a run, in order of their step."""
    return sorted((path / CAPSULES).glob("step-*.safetensors"), key=lambda p: int(p.stem.split("-")[1]))


# --------------------------------------------------------------------------- results of experiments


def append_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Append trials to the run folder, one JSON line each. NaN and infinity are kept (as in Python's json)."""
    lines = "".join(json.dumps(msgspec.to_builtins(t)) + "\n" for t in trials)
    with open(path / TRIALS, "ab+") as file:
        if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":  # an experiment was killed while writing
            lines = "\n" + lines
        file.write(lines.encode())


def read_trials(path: Path) -> tuple[Trial, ...]:
    """The trials stored in a run folder; a cut off last line is left out."""
    found: list[Trial] = []
    file = path / TRIALS
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(msgspec.convert(json.loads(line), Trial))
        except (ValueError, msgspec.ValidationError):
            continue
    return tuple(found)


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write the last diagnosis, in one piece; `read_diagnosis` gives it back as long as the record has not grown."""
    from whyspike.reports.json import render

    temporary = path / (DIAGNOSIS + ".tmp")
    temporary.write_text(render(diagnosis), encoding="utf-8")
    temporary.replace(path / DIAGNOSIS)


def read_diagnosis(path: Path, *, steps: int) -> Diagnosis | None:
    """The last diagnosis that holds an experiment on these many steps; None when there is none, or it is damaged."""
    from whyspike.reports.json import load

    file = path / DIAGNOSIS
    if not file.is_file() or not (path / TRIALS).is_file():
        return None
    try:
        found = load(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, msgspec.ValidationError, UnreadableRun):
        return None
    return found if found.run.steps == steps else None
