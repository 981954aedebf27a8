"""`whyspike check`: what can be said about a training before it trains.

A few batches are drawn, and the loss is measured on the frozen network and on copies of it. Model, optimizer, loader
and random generators are left as they were. One file in `probes/` is one thing that is measured; the folder is
enumerated. What is measured goes into a `Setup`, and the causes say what it means.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from whyspike.cause import Setup, catalogue
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.testing import empty_setup
from whyspike.training import Training, build
from whyspike.types import Finding, Note, Preflight

Progress = Callable[[str, float], None]


def check(source: Training | Callable[..., Training], *, progress: Progress | None = None) -> Preflight:
    """Look at a training without training it.

    Args:
        source: a `whyspike.Training`, or a function that builds one.
        progress: called with words and the fraction that is done.

    Returns:
        Findings (wrong) and notes (ordinary, but they invite a cause; or what could not be looked at).

    Raises:
        BadTraining: the training cannot be used: the loader is empty or a one-shot iterator, `loss_fn` raises or does
            not return a scalar that depends on the parameters.
    """
    say = progress or (lambda words, done: None)
    say("building the training", 0.0)
    training = build(source)
    setup = measure_setup(training, progress=say)
    findings: list[Finding] = []
    notes: list[Note] = []
    said = [probe.say(setup) for probe in all_probes()]
    causes = catalogue()
    for rank, (name, cause) in enumerate(causes.items()):
        say(f"asking {name}", 0.8 + 0.2 * rank / len(causes))
        said.append(cause.preflight(setup))
    for one in said:
        if isinstance(one, Finding):
            findings.append(one)
        elif one is not None:
            notes.append(one)
    return Preflight(findings=tuple(findings), notes=tuple(notes))


def measure_setup(training: Training, *, progress: Progress | None = None) -> Setup:
    """Measure what a preflight may look at. Counts are per optimizer step: all micro-batches together.

    Raises:
        BadTraining: as `check`.
    """
    say = progress or (lambda words, done: None)
    say("drawing a batch", 0.1)
    looked = Looked(training)
    setup = empty_setup()
    chosen = all_probes()
    for rank, probe in enumerate(chosen):
        say(probe.words, 0.2 + 0.6 * rank / len(chosen))
        setup = replace(setup, **probe.measure(looked))
    return setup


@cache
def all_probes() -> tuple[Probe, ...]:
    """The probes of the folder, by their file names."""
    import whyspike.preflight.probes as package

    made = []
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        found = importlib.import_module(f"{package.__name__}.{module}")
        name = "".join(part.capitalize() for part in module.split("_"))
        made.append(getattr(found, name)())
    return tuple(made)
