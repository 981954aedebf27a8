"""Which causes could it be: every cause of the catalogue looks at the observation."""

from __future__ import annotations

from whyspike.cause import Observation, catalogue
from whyspike.types import Suspicion


def suspect(seen: Observation) -> tuple[Suspicion, ...]:
    """The suspicions of all causes whose needs the observation meets, the refuted ones included."""
    found = []
    for cause in catalogue().values():
        if all(_has(seen, need) for need in cause.needs):
            suspicion = cause.signature(seen)
            if suspicion is not None:
                found.append(suspicion)
    return tuple(found)


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
