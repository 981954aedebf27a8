"""whyspike answers one question: why does my training loss spike?

The public names are imported when they are first used, so that `import whyspike` costs next to nothing and
reading a log needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# Where each public name lives.
_HOME = {
    "watch": "record",
    "Recorder": "record",
    "diagnose": "pipeline",
    "prove": "pipeline",
    "check": "preflight",
    "Training": "training",
    "Diagnosis": "types",
    "Preflight": "types",
    "Cause": "cause",
    "Case": "case",
    "Intervention": "seams",
    "WhySpikeError": "errors",
}

__all__ = [
    "Case",
    "Cause",
    "Diagnosis",
    "Intervention",
    "Preflight",
    "Recorder",
    "Training",
    "WhySpikeError",
    "check",
    "diagnose",
    "prove",
    "watch",
]

if TYPE_CHECKING:
    from whyspike.case import Case
    from whyspike.cause import Cause
    from whyspike.errors import WhySpikeError
    from whyspike.pipeline import diagnose, prove
    from whyspike.preflight import check
    from whyspike.record import Recorder, watch
    from whyspike.seams import Intervention
    from whyspike.training import Training
    from whyspike.types import Diagnosis, Preflight


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
