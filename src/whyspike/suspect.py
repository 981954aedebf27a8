"""Which causes could it be: every cause of the catalogue looks at the observation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from whyspike.cause import Observation, catalogue
from whyspike.types import SURER, Evidence, Suspicion


def suspect(seen: Observation) -> tuple[Suspicion, ...]:
    """The suspicions of all causes whose needs the observation meets, the refuted ones included."""
    found = []
    for cause in catalogue().values():
        if all(_has(seen, need) for need in cause.needs):
            suspicion = cause.signature(seen)
            if suspicion is not None:
                split = _split(seen, suspicion) if suspicion.outcome != "refuted" else ()
                found.append(replace(suspicion, evidence=(*suspicion.evidence, *split)))
    return tuple(found)


def likely_first(suspicions: Iterable[Suspicion]) -> list[Suspicion]:
    """The suspicions in the order in which they are tried where not all can be: the likelier first, then roots."""
    causes = catalogue()
    return sorted(suspicions, key=lambda s: (SURER[s.outcome], causes[s.cause].rank))


def _split(seen: Observation, suspicion: Suspicion) -> tuple[Evidence, ...]:
    """The factors of the first event of a suspicion that has them: which family of causes it points to."""
    for event_id in suspicion.events:
        made = seen.attributions.get(event_id)
        if made is not None:
            said = [
                f"{name} x {value:.3g} ({made.interval[name][0]:.3g} to {made.interval[name][1]:.3g})"
                for name, value in (("scale", made.scale), ("weights", made.weights), ("data", made.data))
            ]
            return (
                Evidence(
                    statement="logged loss over that of a typical batch, split into its factors (95 % intervals)",
                    observed="; ".join(said),
                    expected="x 1 each: the loss's own scale, weights moved before the step, a batch unlike others",
                ),
            )
    return ()


def _has(seen: Observation, need: str) -> bool:
    match need:
        case "n_samples":
            return seen.run.n_samples is not None
        case "sample_ids":
            return seen.run.sample_ids is not None
        case "steps_per_epoch":
            return seen.run.steps_per_epoch is not None
        case "exponent":
            return seen.exponent is not None
        case "units":
            return seen.units is not None
        case "batch_null":
            return bool(seen.batch_null)
        case _:
            return True  # "replay": a suspicion may say that it is untested
