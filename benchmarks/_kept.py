"""The parts of a long measurement, each kept when it is done: one that was stopped goes on where it was.

A part lies in .cache/NAME under a key made of its words and of the sources in src/whyspike, so that what was measured
with other sources is never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "whyspike"
SHOWN = ("reports/", "readers/", "integrations/", "cli.py", "catalogue_docs.py", "__main__.py")  # decide no number here


@cache
def sources() -> str:
    """A hash of what a measurement depends on."""
    found = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(SHOWN):
            found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _place(measurement: str, part: str) -> Path:
    key = hashlib.sha256(f"{part}\0{sources()}".encode()).hexdigest()[:24]
    return ROOT / ".cache" / measurement / f"{key}.json"


def find(measurement: str, part: str) -> Any:
    """What was measured for this part before; None where nothing was."""
    path = _place(measurement, part)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def kept(measurement: str, part: str, make: Callable[[], Any]) -> Any:
    """What `make` returns (of JSON), or what it returned for this part before."""
    path = _place(measurement, part)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    began = time.monotonic()
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(made), encoding="utf-8")
    unfinished.replace(path)
    print(f"{time.monotonic() - began:5.0f} s  {measurement}: {part}", file=sys.stderr, flush=True)
    return json.loads(json.dumps(made))
