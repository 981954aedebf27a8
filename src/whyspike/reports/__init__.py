"""The forms in which a diagnosis is shown. One file is one form; the folder is enumerated, nothing is loaded early."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whyspike.types import Diagnosis


def _formats() -> Mapping[str, str]:
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {"full" if name == "terminal" else name: f"{__name__}.{name}" for name in modules}


FORMATS: Mapping[str, str] = _formats()  # name of the format → module; "full" is terminal.py


def render(diagnosis: Diagnosis, format: str = "full") -> str:
    """The diagnosis as text of that format, without a trailing newline.

    Raises:
        WhySpikeError: there is no such format.
    """
    return _module(format).render(diagnosis).rstrip("\n")


def render_many(diagnoses: Sequence[Diagnosis], format: str = "full", compared: Mapping[str, Any] | None = None) -> str:
    """The diagnoses of several runs as one text of that format, and how they compare, without a trailing newline.

    Raises:
        WhySpikeError: there is no such format, or it is that of a page, which shows one run.
    """
    if format == "html":
        from whyspike.errors import WhySpikeError

        raise WhySpikeError(
            f"{len(diagnoses)} runs were read, and a page of html shows one; name one of them, or choose full, "
            "concise, json, markdown or github"
        )
    return _module(format).render_many(diagnoses, compared).rstrip("\n")


def _module(format: str) -> Any:
    if format not in FORMATS:
        from whyspike.errors import WhySpikeError

        raise WhySpikeError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    return importlib.import_module(FORMATS[format])
