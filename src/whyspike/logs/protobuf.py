"""The fields of a protocol buffer, without its schema: enough for event files and W&B's records, and no dependency.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | float | bytes


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """Field number, wire type and raw value: an int (0), a double (1), bytes (2) or a float (5).

    Raises:
        ValueError: the bytes are no message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, kind, value
        elif kind == 1 and at + 8 <= end:
            yield number, kind, struct.unpack_from("<d", data, at)[0]
            at += 8
        elif kind == 5 and at + 4 <= end:
            yield number, kind, struct.unpack_from("<f", data, at)[0]
            at += 4
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field is cut off")
            yield number, kind, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind} is none of 0, 1, 2, 5")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number is cut off")


def signed(value: int) -> int:
    """A 64-bit two's complement, as int64 fields hold negative numbers."""
    return value - (1 << 64) if value >= 1 << 63 else value
