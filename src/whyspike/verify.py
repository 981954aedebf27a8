"""Verify a cure: train from scratch with and without it, on seeds of its own.

"This caused this spike" and "this is a better setting" are two claims. The replay shows the first; this shows the
second, and is reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from whyspike.arms import ScriptSource, Wanted
from whyspike.cause import ScratchCure
from whyspike.detect import Detector
from whyspike.rerun import Source, Trained, train
from whyspike.seams import BASELINE, Intervention
from whyspike.types import Cure

SEEDS = (1001, 1002, 1003)  # not the seed that was diagnosed
WORSE = 1.05  # a final probe loss this much above the uncured run's is no cure
Progress = Callable[[str, float], None]


def spikes(trained: Trained) -> int:
    """Events of the logged loss, and of the network where it was watched."""
    states = dict(zip(trained.state.step.tolist(), trained.state.value.tolist(), strict=True))
    detector = Detector(batch_size=trained.batch_size or None, dense=bool(states))
    for step, (loss, n) in enumerate(zip(trained.loss.tolist(), trained.n_samples.tolist(), strict=True)):
        if np.isfinite(loss):
            detector.update(step, loss, n_samples=int(n), probe=states.get(step))
    detector.finish()
    return sum(e.kind != "dip" for e in detector.events)


def verify(
    source: Source | ScriptSource,
    cures: Sequence[ScratchCure],
    *,
    seeds: Sequence[int] = SEEDS,
    progress: Progress | None = None,
) -> tuple[Cure, ...]:
    """The cures, each with `verified` and `numbers`. Cures that cannot be trained at the seams come back as they are.

    A cure is verified when over the seeds the spikes at the small batch (or the events) go and the final probe loss is
    not worse; one that only protects the weights when the final probe loss is better while the plotted spike stays.
    """
    makers = {c.make().words: c for c in cures if c.make is not None}
    changes = [BASELINE] + [c.make() for c in makers.values() if c.make is not None]
    trained = _trained(source, [(change, seed) for change in changes for seed in seeds], progress)
    groups = [trained[k : k + len(seeds)] for k in range(0, len(trained), len(seeds))]
    sick, cured = groups[0], dict(zip(makers, groups[1:], strict=True))
    return tuple(c.cure if c.make is None else _judged(c, sick, cured[c.make().words]) for c in cures)


def _trained(
    source: Source | ScriptSource, arms: Sequence[tuple[Intervention, int]], progress: Progress | None
) -> list[Trained]:
    """The trainings in their order; those of a script in processes of their own."""
    if isinstance(source, ScriptSource):
        return source.train([Wanted(intervention=change, seed=seed) for change, seed in arms], progress)
    made = []
    for change, seed in arms:
        if progress:
            progress(f"training from scratch: {change.words}", len(made) / len(arms))
        made.append(train(source, change, seed=seed))
    return made


def _judged(scratch: ScratchCure, sick: Sequence[Trained], cured: Sequence[Trained]) -> Cure:
    before = float(np.mean([t.final_probe for t in sick]))
    after = float(np.mean([t.final_probe for t in cured]))
    height_before = float(np.median([t.last_batch_factor() for t in sick]))
    height_after = float(np.median([t.last_batch_factor() for t in cured]))
    events_before, events_after = sum(map(spikes, sick)), sum(map(spikes, cured))
    numbers = {
        "seeds": float(len(cured)),
        "final_probe_loss_before": before,
        "final_probe_loss_after": after,
        "last_batch_factor_before": height_before,
        "last_batch_factor_after": height_after,
        "events_before": float(events_before),
        "events_after": float(events_after),
    }
    not_worse = bool(after <= before * WORSE) if before > 0 else bool(after <= before + 0.05)
    if not np.isfinite(before):  # the uncured network ends in NaN
        not_worse = bool(np.isfinite(after))
    gone = events_after <= 0.2 * events_before
    verified = not_worse and gone
    if scratch.expected == "protects":
        verified = bool(after < before)
    return replace(scratch.cure, verified=bool(verified), numbers={k: v for k, v in numbers.items() if np.isfinite(v)})
