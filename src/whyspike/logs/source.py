"""Where a log comes from: a file, a folder or standard input, as text that a reader can look at."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.types import Note

HEAD = 65_536  # bytes that a reader looks at to tell whether the format is its own
BINARY = 0.02  # of control characters in the head: a text has tabs, line ends and colours, and none of the others
LINE_END = re.compile(r"\r\n|\r|\n")
PER_BYTE = 12  # bytes of memory that a byte of a table needs (benchmarks/large_logs.py: 450 MB for 26)


class Source:
    """A file, a folder or standard input. What is in it is read when it is asked for, and once.

    Args:
        path: of the file or folder.
        content: the bytes themselves, where there is no file; `path` is then only a name.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path, self._content = path, content

    @classmethod
    def stdin(cls) -> Source:
        """What arrives on standard input.

        Raises:
            UnreadableRun: nobody writes there.
        """
        if sys.stdin is None or sys.stdin.isatty():
            raise UnreadableRun(
                "- reads a log from standard input, and nothing is written there; write: "
                "python train.py | whyspike diagnose -"
            )
        try:
            return cls(Path("standard input"), sys.stdin.buffer.read())
        except (OSError, ValueError, AttributeError) as error:
            raise UnreadableRun(f"standard input cannot be read ({error}); give the path of a log instead") from error

    @property
    def name(self) -> str:
        return str(self.path)

    @cached_property
    def is_folder(self) -> bool:
        return self._content is None and self.path.is_dir()

    @property
    def on_disk(self) -> bool:
        """Whether it lies in a folder, where something may lie beside it."""
        return self._content is None

    @cached_property
    def head(self) -> bytes:
        """The first bytes of the file, unpacked; empty for a folder."""
        if self.is_folder:
            return b""
        if self._content is not None:
            start = self._content[:HEAD]
        else:
            with self.path.open("rb") as file:
                start = file.read(HEAD)
        if not start.startswith(b"\x1f\x8b"):
            return start
        try:
            return zlib.decompressobj(wbits=31).decompress(start)[:HEAD]
        except zlib.error:
            return start

    @cached_property
    def content(self) -> bytes:
        """All bytes of the file, unpacked where it is gzipped."""
        if self.is_folder:
            raise UnreadableRun(f"{self.name} is a folder, not a file")
        raw = self._content if self._content is not None else self._whole()
        if raw.startswith(b"\x1f\x8b"):
            try:
                return self._unpacked(raw)
            except (OSError, EOFError, zlib.error) as error:
                raise UnreadableRun(
                    f"{self.name} is gzipped and damaged ({error}); unpack what is left of it"
                ) from error
        return raw

    def _whole(self) -> bytes:
        size, most = self.path.stat().st_size, _memory() // PER_BYTE
        if most and size > most:
            raise self._too_large(f"has {size / 1e9:,.1f} GB")
        return self.path.read_bytes()

    def _unpacked(self, raw: bytes) -> bytes:
        most = _memory() // PER_BYTE
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            made = file.read(most or -1)
            if most and file.read(1):
                raise self._too_large(f"has more than {most / 1e9:,.1f} GB when it is unpacked")
        return made

    def _too_large(self, has: str) -> UnreadableRun:
        name, packed = self.path.name, self.path.suffix == ".gz"
        of, to = (f"zcat {name} | ", Path(self.path.stem).suffix) if packed else ("", self.path.suffix)
        thin = "Write every 100th step of its loss into a CSV file, and give that"
        if self.is_text:
            thin = f"Thin it first, e.g. {of}awk 'NR == 1 || NR % 100 == 0'{'' if packed else f' {name}'} > thin{to}"
        return UnreadableRun(
            f"{self.name} {has}, and this machine {_memory() / 1e9:,.1f} GB of memory; about {PER_BYTE} times the file "
            f"are needed. {thin}"
        )

    @cached_property
    def is_text(self) -> bool:
        """Whether the head is text: what a disk fills with NUL after a crash does not count against it."""
        head = self.head.strip(b"\x00")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            return True
        control = sum(c < 32 and c not in b"\t\n\r\f\b\x1b" for c in head)
        return bool(head) and control <= BINARY * len(head)

    @cached_property
    def text(self) -> str:
        """The file as text: UTF-8 or, with its mark, UTF-16. Bytes that are neither become U+FFFD."""
        return _decoded(self.content)

    @cached_property
    def first_lines(self) -> Sequence[str]:
        """The lines of the head that are not blank; one that the head cuts off is left out."""
        if self.is_folder or not self.is_text:
            return ()
        lines = _decoded(self.head).replace("\r", "\n").split("\n")
        if len(self.head) >= HEAD and len(lines) > 1:
            lines = lines[:-1]
        return [line for line in lines if line.strip()]

    @cached_property
    def lines(self) -> Sequence[str]:
        """The lines of the text. A progress bar that was drawn over itself gives one line for each drawing."""
        return _lines(self.text)

    def beginning(self, n: int) -> Sequence[str]:
        """The first `n` of the lines, without making all of them."""
        end = next(islice(LINE_END.finditer(self.text), n - 1, None), None)
        return _lines(self.text if end is None else self.text[: end.start()])

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """What the bytes themselves say."""
        if self.is_folder:
            return ()
        raw, made = self.content, []
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            return ()
        head, tail = len(raw) - len(raw.lstrip(b"\x00")), len(raw) - len(raw.rstrip(b"\x00"))
        if head:
            made.append(
                Note(
                    id="truncated-head",
                    text=f"the file begins with {head:,} NUL bytes, as after a crash; they were left out",
                )
            )
        if tail and tail < len(raw):
            made.append(
                Note(
                    id="truncated-tail",
                    text=f"the file ends in {tail:,} NUL bytes, as after a crash; they were left out",
                )
            )
        return tuple(made)


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _decoded(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    return raw.strip(b"\x00").decode("utf-8-sig", errors="replace")


def _memory() -> int:
    """Bytes of memory that the machine has; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
