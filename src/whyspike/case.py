"""What a case is: a small real training that is sick of one cause, and its healthy twin.

One file in `cases/` is one case; its module's name with hyphens is the case's name, and it holds one `CASE`.
The folder is enumerated; nothing is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.errors import UnknownCase
from whyspike.training import Training

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from whyspike.record import Recorder
    from whyspike.seams import LossFn


@dataclass(frozen=True, kw_only=True)
class Vary:
    """How far a case is from its own settings: factors of them, 1 for the case as it stands.

    The scoreboard draws them at random, so that a cause is not recognised by the one setting it was written on.
    """

    lr: float = 1.0
    n: float = 1.0  # samples of the data set
    batch_size: float = 1.0
    width: float = 1.0  # of the network's hidden layers

    def of(self, number: int, factor: float, least: int = 1) -> int:
        """A count times a factor, as a whole number of at least `least`."""
        return max(least, round(number * factor))


PLAIN = Vary()


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training in a loop of its own, as a user writes it around `watch()`: for what a `Training` cannot say.

    Args:
        body: the whole loop; it iterates over `rec.batches(loader)` and calls `rec.step(loss)`.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFn | None
    body: Callable[[Recorder], None]
    scheduler: Any = None
    scaler: Any = None


@dataclass(frozen=True, kw_only=True)
class Log:
    """A training of which only a log is left.

    Args:
        write: trains, writes the log into a folder as its logger would, and returns the path to diagnose.
    """

    write: Callable[[Path], Path]


Subject = Training | Loop | Log
Build = Callable[[int, Vary], Subject]  # (seed, how far from the case's own settings)


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
    sick: Build
    healthy: Build
    also_true: tuple[str, ...] = ()
    name: str = ""


@cache
def cases() -> dict[str, Case]:
    """Every case by its name."""
    import whyspike.cases as package

    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")):
        name = module.replace("_", "-")
        case: Case = importlib.import_module(f"{package.__name__}.{module}").CASE
        found[name] = Case(**{**vars(case), "name": name})
    return found


def find_case(name: str) -> Case:
    """The case of that name, or the first one of the cause of that name.

    Raises:
        UnknownCase: there is none.
    """
    if name in cases():
        return cases()[name]
    for case in cases().values():
        if case.cause == name:
            return case
    raise UnknownCase(f"there is no case named {name!r}; `whyspike demo --list` shows all of them")
