"""Adam's second moment beside its eps, at the snapshots of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whyspike.errors import WhySpikeError

MOST = 24  # snapshots that are read: as many as an experiment keeps
WEIGHTS = 100_000  # of each tensor that are looked at, evenly spaced


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """sqrt(v) over eps at one snapshot, v with its bias corrected."""

    step: int
    eps: float
    median: float  # of sqrt(v), over all weights that have had a gradient
    below: float  # share of the weights whose sqrt(v) is below eps
    near: float  # below ten times eps


def second_moments(capsules: Sequence[Path]) -> tuple[SecondMoment, ...]:
    """Of the snapshots of an Adam-like optimizer; none where there is no second moment."""
    from whyspike import batches, capsule

    found = []
    chosen = list(capsules)
    if len(chosen) > MOST:
        chosen = [chosen[int(k)] for k in np.linspace(0, len(chosen) - 1, MOST)]
    for path in chosen:
        try:
            held = capsule.load(path)
            stored = batches.unflatten(held.optimizer, held.tensors) if held.optimizer is not None else None
        except (WhySpikeError, OSError):
            continue
        made = _measured(stored, held.step)
        if made is not None:
            found.append(made)
    return tuple(found)


def _measured(stored: Any, step: int) -> SecondMoment | None:
    groups = stored.get("groups") if isinstance(stored, dict) else None
    if not groups or "eps" not in groups[0] or "betas" not in groups[0]:
        return None
    eps, beta2 = float(groups[0]["eps"]), float(groups[0]["betas"][1])
    parts = []
    for state in stored["state"].values():
        v = state.get("exp_avg_sq") if isinstance(state, dict) else None
        if v is None:
            continue
        flat = v.detach().flatten().double()
        flat = flat[:: max(1, len(flat) // WEIGHTS)].cpu().numpy()
        t = max(1.0, float(state.get("step", 1.0)))
        parts.append(np.sqrt(flat / (1 - beta2**t)))
    if not parts or eps <= 0:
        return None
    roots = np.concatenate(parts)
    roots = roots[roots > 0]
    if not len(roots):
        return None
    return SecondMoment(
        step=step,
        eps=eps,
        median=float(np.median(roots)),
        below=float(np.mean(roots < eps)),
        near=float(np.mean(roots < 10 * eps)),
    )
