"""What a case is: a small real training that is sick of one cause, and its healthy twin.

One file in `cases/` is one case; its module's name with hyphens is the case's name, and it holds one `CASE`.
The folder is enumerated; nothing is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from whyspike.errors import UnknownCase
from whyspike.training import Training


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sick training and its healthy twin, in seconds on a CPU.

    Args:
        words: one sentence on what is trained and what is wrong with it.
        cause: the id of the answer.
        also_true: other causes at work in it, declared before anything is scored.
        sick, healthy: build the training afresh for a seed. For a harmless cause, `sick` is the telling run.
    """

    words: str
    cause: str
    sick: Callable[[int], Training]
    healthy: Callable[[int], Training]
    also_true: tuple[str, ...] = ()
    name: str = ""


@cache
def cases() -> Mapping[str, Case]:
    """Every case by its name."""
    import whyspike.cases as package

    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")):
        name = module.replace("_", "-")
        case: Case = importlib.import_module(f"{package.__name__}.{module}").CASE
        found[name] = Case(**{**vars(case), "name": name})
    return found


def find_case(name: str) -> Case:
    """The case of that name.

    Raises:
        UnknownCase: there is none.
    """
    if name in cases():
        return cases()[name]
    raise UnknownCase(f"there is no case named {name!r}; `whyspike demo --list` shows all of them")
