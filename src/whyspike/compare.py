"""Two runs beside each other: do their losses wiggle and spike at the same steps?

The noise of a loss is the luck of the draw. Two runs over the same data in the same order share it, whatever their
optimizers do; a spike that both have at the same step then comes from the data. The correlation of the residuals at the
same steps is compared with those at every other shift of the two runs against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whyspike.echo import residuals
from whyspike.types import Diagnosis, Event

LEAST = 64  # steps that both logged
APART = 16  # shifts of fewer points are not independent of none
SAME = 0.3  # of the correlation: as for one run against itself (whyspike.echo.LEAST)
ALPHA = 0.01
NEAR = 2  # points between two onsets that are the same


def compare(first: Diagnosis, second: Diagnosis) -> dict[str, Any]:
    """What two diagnosed runs have in common: correlation of their residuals at the same steps, and shared events."""
    a, b = first.record, second.record
    assert a is not None, "a diagnosis made here holds its record"
    assert b is not None, "a diagnosis made here holds its record"
    steps, at_a, at_b = np.intersect1d(a.step, b.step, return_indices=True)
    made: dict[str, Any] = {"sources": [a.source, b.source], "steps": len(steps)}
    if len(steps) < LEAST:
        said = f"The two runs have {len(steps)} steps in common; at least {LEAST} are needed to compare them."
        return {**made, "correlation": None, "by_chance": None, "p_value": None, "shared_events": [], "sentence": said}
    x, y = _clipped(residuals(a.loss)[at_a]), _clipped(residuals(b.loss)[at_b])
    r = _correlation(x, y)
    shifts = np.unique(np.linspace(APART, len(x) - APART, 199).astype(np.int64))
    others = np.array([_correlation(x, np.roll(y, k)) for k in shifts])
    p = float((1 + np.sum(others >= r)) / (1 + len(others)))
    same = r >= SAME and p <= ALPHA
    every = int(np.median(np.diff(steps)))
    shared = _shared(first.events, second.events, NEAR * every)
    return {
        **made,
        "correlation": r,
        "by_chance": float(np.quantile(others, 0.99)),
        "p_value": p,
        "shared_events": shared,
        "sentence": _sentence(r, p, same, shared, len(first.events), len(second.events)),
    }


def _clipped(x: np.ndarray) -> np.ndarray:
    x = np.where(np.isfinite(x), x, 0.0)
    scatter = 1.4826 * float(np.median(np.abs(x))) or 1.0
    return np.clip(x, -4 * scatter, 4 * scatter)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0


def _shared(first: Sequence[Event], second: Sequence[Event], near: int) -> list[int]:
    """The steps at which both runs have an event that begins."""
    return [e.step for e in first if any(abs(e.step - o.step) <= near for o in second)]


def _sentence(r: float, p: float, same: bool, shared: Sequence[int], n_first: int, n_second: int) -> str:
    both = f"{len(shared)} of {n_first} and {n_second} events begin at the same step" if n_first and n_second else ""
    if same:
        said = (
            "Both runs draw the same data in the same order: their noise agrees step by step "
            f"(correlation {r:.2f}, p = {p:.2g})."
        )
        if shared:
            return f"{said} {both}: where both spike, the data are the reason and not the optimizer."
        return (
            f"{said} No event is common to both: what they do not share is not in the data."
            if n_first or n_second
            else said
        )
    found = f"correlation {r:.2f}, p = {p:.2g}"
    said = f"The noise of the two runs has nothing in common ({found}): other data, or another order."
    return f"{said} {both}." if both else said
