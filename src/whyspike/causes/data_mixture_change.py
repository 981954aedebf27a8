from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

STEPS = 32  # on either side of an event whose samples are compared
SAME = 8  # steps right before and after an event that are left out: it may be seen that much late
BINS = 20  # of the data set, by index: sources lie behind one another in it, as ConcatDataset puts them
LARGE = 0.15  # total variation beyond chance: below it a change of mixture is too small to show in a loss
P = 1e-6  # of a chi-square; there are a few tests per event, and no line of a loss is judged by it alone


class DataMixtureChange(Cause):
    """a change of what the data are made of: other shares of their sources.

    What happens:
        A sampler changes the shares of its sources, a source is used up, a curriculum enters its next stage. The loss is
        the mean over the mixture, so that it goes to another level at once, though the loss of each source goes on as it
        was.

    How it looks:
        A step up or down that stays, or a hump while the network learns the new mixture. The samples of the batches come
        from other parts of the data set than before.

    How we test it:
        The dataset indices of the 32 steps before an event are compared with those of the 32 after it. The steps across
        the change are replayed with samples of the batches before it in every batch: the step must go. As a placebo they
        are replayed with other samples of the batches after it.

    What to do:
        Log the loss of each source by itself: each is continuous. Where the change is not meant, set the sampler's weights
        right; where it is, let them change slowly.

    References:
        https://github.com/jingyaogong/minimind/issues/503. Albalak et al. 2023, arXiv 2312.02406, on mixtures that change
        during the training. A mean over groups of changing shares: Simpson 1951.
    """

    family = "data"
    aliases = ("domain-block", "mixture", "curriculum-stage", "source-weights")
    needs = ("sample_ids", "replay")
    rank = 22
    measure = "jump"
    title = "the shares of the data's sources change"

    def signature(self, seen: Observation) -> Suspicion | None:
        found = _changes(seen)
        if not found:
            return None
        events = [seen.event(i) for i in found]
        distance, chance, p = max(found.values())
        evidence = [
            Evidence(
                statement=f"share of the samples that come from other parts of the data set than {STEPS} steps before",
                observed=f"{distance:.0%}",
                expected=f"{chance:.0%}, from samples that are drawn alike",
                p_value=p,
            )
        ]
        return suspect(self, events, evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ReadSamples

        return [ReadSamples(draw, _Like(seen, -1), "samples of the mixture before the change", "onward")]

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int] | None:
        return [_place(seen.run, e) for e in events]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReadSamples

        return ReadSamples(draw, _Like(seen, +1), "other samples of the mixture after it", "onward")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = _changes(seen)
        if not found:
            return super().sentence(seen, events)
        places = [f"{_place(seen.run, seen.event(i)):,}" for i in found]
        at = f"step {places[0]}" if len(places) == 1 else f"steps {', '.join(places[:4])}"
        return f"At {at} your batches begin to come from other parts of the data set, and the loss goes to their level."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="log the loss of each source by itself: the mean over a changing mixture says nothing",
                    code={
                        "torch": "each = F.cross_entropy(scores, classes, reduction='none')\n"
                        "for name in sources:\n    log(name, each[source == name].mean())",
                        "keras": "keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: [model.evaluate(d) for d in "
                        "sources])",
                        "hf": "TrainingArguments(...); Trainer(eval_dataset={'web': web, 'code': code})",
                        "lightning": "self.log(f'loss/{source}', loss_of_source)",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="change the shares slowly, and keep them where the change is not meant",
                    code={
                        "torch": "WeightedRandomSampler(weights, num_samples)   # the same weights in every epoch",
                        "hf": "datasets.interleave_datasets([a, b], probabilities=[0.7, 0.3], seed=0)",
                    },
                    applicability="manual",
                )
            ),
        ]


class _Like:
    """Samples as those before (side -1) or after (+1) the change that a replay is about."""

    def __init__(self, seen: Observation, side: int) -> None:
        self.run, self.side = seen.run, side
        self.places = sorted(_place(seen.run, seen.event(i)) for i in _changes(seen))

    def __call__(self, step: int) -> np.ndarray | None:
        at = max((p for p in self.places if p <= step), default=None)
        row = int(np.searchsorted(self.run.step, step))
        if at is None or self.run.sample_ids is None or row >= len(self.run.sample_ids):
            return None
        pool = _around(self.run, at, self.side)
        n = len(self.run.sample_ids[row])
        return np.random.default_rng([step, self.side + 1]).choice(pool, n) if len(pool) else None


def _around(run: Run, step: int, side: int) -> np.ndarray:
    """The dataset indices of the steps before or after one."""
    assert run.sample_ids is not None
    row = int(np.searchsorted(run.step, step))
    first, last = (row - STEPS, row) if side < 0 else (row, row + STEPS)
    held = run.sample_ids[max(0, first) : max(0, last)]
    return np.concatenate(held) if len(held) else np.zeros(0, np.int64)


def _place(run: Run, event: Event) -> int:
    """The step near an event at which the mixture changes: where both sides differ the most."""
    row = int(np.searchsorted(run.step, event.step))
    rows = [r for r in range(row - SAME, row + SAME + 1) if 1 <= r < len(run)]
    best = max(rows, key=lambda r: (_distance(run, int(run.step[r]))[0], -abs(r - row)), default=row)
    return int(run.step[best])


def _changes(seen: Observation) -> dict[str, tuple[float, float, float]]:
    """Of the events at which the mixture changes: how much, how much by chance, and p."""
    run = seen.run
    if run.sample_ids is None or len(run) < 2 * STEPS:
        return {}
    found = {}
    for event in seen.events:
        if event.kind == "non-finite" or event.period or event.step < STEPS // 2:
            continue
        at = _place(run, event)
        distance, chance, p = _distance(run, at)
        # In an epoch that goes through the file in its order, each stretch is another part of it: no change at one step.
        earlier = _distance(run, at - STEPS)[0] if at >= 2 * STEPS else 0.0
        if distance - chance >= LARGE and p < P and distance >= 2 * earlier:
            found[event.id] = (distance, chance, p)
    return found


def _distance(run: Run, step: int) -> tuple[float, float, float]:
    """Total variation between the samples before and after a step, its mean under no change, and p of a chi-square."""
    before, after = _around(run, step, -1), _around(run, step, +1)
    if len(before) < 4 * BINS or len(after) < 4 * BINS:
        return 0.0, 0.0, 1.0
    highest = max(int(before.max()), int(after.max())) + 1
    a, b = (np.bincount(ids * BINS // highest, minlength=BINS)[:BINS].astype(float) for ids in (before, after))
    share = (a + b) / (a.sum() + b.sum())
    distance = 0.5 * float(np.abs(a / a.sum() - b / b.sum()).sum())
    size = np.sqrt(share * (1 - share) * (1 / a.sum() + 1 / b.sum()))
    chance = float(0.5 * np.sqrt(2 / np.pi) * size.sum())
    used = share > 0
    chi2 = 0.0
    for counts in (a, b):
        wanted = counts.sum() * share[used]
        chi2 += float(((counts[used] - wanted) ** 2 / wanted).sum())
    return distance, chance, _tail(chi2, int(used.sum()) - 1)


def _tail(chi2: float, freedom: int) -> float:
    """The chance of a chi-square at least as large: Wilson & Hilferty 1931, within a factor of two down to 1e-6."""
    from math import erfc

    if freedom < 1:
        return 1.0
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return 0.5 * erfc(z / 2**0.5)
