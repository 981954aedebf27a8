"""Reading a run: one file in this folder is one format, with `sniff(path) -> bool` and `read(path) -> Run`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.types import Run


def read(path: Path) -> Run:
    """Read a run, whatever its format.

    Raises:
        UnreadableRun: nothing is there, or no reader knows what is there.
    """
    if not path.exists():
        raise UnreadableRun(
            f"{path} does not exist; give the folder of a recorded run, e.g. whyspike-runs/<name>-<time>"
        )
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        reader = importlib.import_module(f"{__name__}.{module}")
        if reader.sniff(path):
            return reader.read(path)
    what = "a folder" if path.is_dir() else "a file"
    raise UnreadableRun(
        f"{path} is {what} that no reader knows; a run recorded by whyspike.watch() is a folder with run.json in it"
    )
