"""Which change of the steps before an event takes it away: from that, what kind of event it is.

The changes are tried in the order of how much they say, and the trials stop when the kind is decided (experiment Q2):

- one sample: a batch sets it off, and with one of its samples replaced the event is gone;
- one batch: with that batch skipped at least 80 % of the event is gone, and no other batch does as much;
- instability: the batches are the same throughout, so none can be to blame; a learning rate a tenth lower removes it;
- large steps: no batch and no sample decides, a shorter step does: the steps are too large for the curvature there.

A lower learning rate removes any spike in the end: at a tenth it freezes the training. So it says nothing by itself,
and is asked last. Only spikes of the network are profiled, those that a plotted number alone shows have no such kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from whyspike import batches
from whyspike.attribute import per_sample
from whyspike.errors import NotReplayable, WhySpikeError
from whyspike.excess import area_above
from whyspike.exposures import rows_of
from whyspike.seams import BASELINE

if TYPE_CHECKING:
    from whyspike.experiment import Experiment
    from whyspike.replay import Replayed, Window
    from whyspike.replays import Pair
    from whyspike.seams import Intervention
    from whyspike.types import Event, Run

Kind = Literal["one sample", "one batch", "instability", "large steps", "undecided"]

DECIDES = 0.8  # of the event's area: as the contract of a verdict
MATTERS = 0.5  # one batch that leaves this much is not it; nor are two that take as much
BEFORE, AFTER = 12, 2  # steps before and after the onset whose batches may have set it off (Q2: up to 10 before)
DRAWS = 12  # of other batches, as experiment Q2
DRAWS_HERE = 3  # of another batch in place of the one that is named
SUSPECTS = 3  # samples of a batch that are replaced, those of the highest loss
SINGLE_ROWS = 128  # a larger batch is looked at in pieces first
REPLAYS = 24  # of one event: 15 batches skipped, and what follows from that
SHORT_REPLAYS = 8  # of whole ones, where each of them ends as soon as it has said what is asked
SAME_BATCH_REPLAYS = 6  # two, and as long again for the sharpness at four steps
APART = 4  # steps between the states from which such replays begin
OF_ONE_KIND = 3  # profiles that say what the others will be, where a replay is dear
ERROR = 0.05  # of each kind, of the sequential test of other batches
LIKELY, UNLIKELY = 0.8, 0.2  # chances that other batches remove the event, between which the test decides
SHARP_AT = (-12, -8, -4, 0)  # steps from the onset at which the sharpness is measured, in full-batch training
DECIDING_AT = 2  # of them: the last ones
SHORTER, CUT, HALF = 0.9, 0.7, 0.5  # of the learning rate; the first two decide adaptive-eos and lr-too-high


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was found of one event. `shares` holds what each change removed of its area, in the order of the trials."""

    event: str
    kind: Kind
    onset: int  # the step after which the network had risen
    height: float  # peak of the probe loss over its level before
    same_batch: bool  # every step has the same samples
    batch_step: int | None = None  # the step whose batch alone carries it
    batch_share: float | None = None
    next_share: float | None = None  # what the best other batch removes
    sample: int | None = None  # dataset index of the sample that carries it, or its row in the batch
    sample_known: bool = False  # whether `sample` is a dataset index
    sample_row: int = 0  # its row in the batch
    sample_share: float | None = None
    sample_placebo: float | None = None  # another sample of that batch replaced
    sample_moved: float | None = None  # the event's share that appears when the sample is put into an earlier batch
    elsewhere: float | None = None  # share of the event that the named batch makes from an earlier state
    others_here: float | None = None  # share that other batches of its size make from its own state; median of 3 draws
    sharpness: tuple[float, ...] = ()  # over the optimizer's limit, before the steps at `SHARP_AT` from the onset
    others: tuple[float, ...] = ()  # share removed in each draw of other batches up to the event
    shares: tuple[tuple[str, float], ...] = ()
    at_most: bool = False  # `batch_share` and `next_share` are upper bounds: the replays ended once that was known

    def share(self, words: str) -> float | None:
        return dict(self.shares).get(words)


class Profiler:
    """Profiles events. Call it inside `subject.kept()`.

    Args:
        experiment: made for the run; its replays are kept, so that causes need not make them again.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.subject = experiment, experiment.subject

    def replays(self, event: Event) -> int:
        """How many replays the profile of an event takes, about."""
        pairs = self.experiment.pairs((event.id,))
        if pairs and self._same_batch(pairs[0]):
            return SAME_BATCH_REPLAYS
        return SHORT_REPLAYS if self.experiment.thrifty else REPLAYS

    def profile(self, event: Event) -> Profile | None:
        """The profile of an event; None where no capsule covers it or the network did not move."""
        pairs = [p for p in self.experiment.pairs((event.id,)) if p.redraw is None]
        if not pairs or event.period:
            return None
        trials = Trials(self.experiment, pairs[0])
        if not trials.area > 0 or not math.isfinite(trials.area):
            return None
        found = Profile(
            event=event.id,
            kind="undecided",
            onset=trials.onset,
            height=trials.height,
            same_batch=self._same_batch(pairs[0]),
        )
        if not found.same_batch:
            found = self._batch(found, trials)
            if found.batch_step is not None and not self.experiment.thrifty:  # else it was looked at already
                # Rows padded to another length cannot trade places: then the batch is named, and none of its samples.
                with suppress(NotReplayable):
                    found = self._sample(found, trials)
        if found.kind == "undecided" or self.experiment.full:  # what is decided stays so
            stepped = self._steps(found, trials)
            found = replace(stepped, kind=stepped.kind if found.kind == "undecided" else found.kind)
        return replace(found, shares=tuple(trials.shares.items()))

    # ------------------------------------------------------------------ batches and samples

    def _same_batch(self, pair: Pair) -> bool:
        """Whether the steps of the window all have the same samples, in whatever order."""
        steps = [s for s in self.subject.capsule(pair.window.path).steps if s.batches]
        if len(steps) < 2:
            return False
        if all(s.ids is not None for s in steps):
            first = np.sort(steps[0].ids)  # type: ignore[arg-type]
            return all(len(s.ids) == len(first) and bool((np.sort(s.ids) == first).all()) for s in steps)  # type: ignore[arg-type]
        held = [s.batches[0] for s in steps if s.batches is not None and len(s.batches) == 1]
        return len(held) == len(steps) and all(batches.equal(b, held[0]) for b in held[1:])

    def _batch(self, found: Profile, trials: Trials) -> Profile:
        """Skip every batch in turn."""
        from whyspike.interventions import ClipGradNorm, SkipBatch

        taken = {}
        thrifty = self.experiment.thrifty
        for offset in sorted(range(-BEFORE, AFTER + 1), key=abs):
            if offset not in trials.steps:
                continue
            skip = SkipBatch(f"the batch {_at(offset)} skipped", offset)
            taken[offset] = trials.reaches(skip, offset, MATTERS) if thrifty else trials.removed(skip)
            if thrifty and taken[offset] >= DECIDES:
                # A sample without which all of it is gone, while the batch stays, needs no comparison with batches.
                named = self._named(found, offset, taken[offset], trials)
                if named is not None:
                    return named
                if sum(share >= DECIDES for share in taken.values()) > 1:
                    break  # of two batches that do as much neither is alone
        if not taken:
            return found
        best = max(taken, key=lambda k: taken[k])
        second = max((v for k, v in taken.items() if k != best), default=0.0)
        if taken[best] < DECIDES:
            return replace(found, batch_share=taken[best], next_share=second, at_most=thrifty)
        found = replace(found, batch_step=found.onset + best, batch_share=taken[best], next_share=second)
        norm = self.experiment.seen.median_gradient_norm()
        clipped = None
        if norm is not None and (MATTERS <= second < DECIDES or not thrifty):
            clipped = trials.removed(ClipGradNorm(3 * norm, "gradient clipped to 3 x its median norm", "always"))
        # The batch alone: no other one takes as much, or its gradient stands out of all others.
        alone = second < MATTERS or (clipped is not None and clipped >= DECIDES and second < DECIDES)
        if not alone:
            return found
        if thrifty:  # the others only describe
            return replace(found, kind="one batch")
        here = self._others_here(best, trials)
        return replace(found, kind="one batch", elsewhere=self._elsewhere(best, trials), others_here=here)

    def _named(self, found: Profile, offset: int, share: float, trials: Trials) -> Profile | None:
        """The profile of an event that one sample of this batch carries; None where none does."""
        try:
            tried = replace(found, kind="one batch", batch_step=found.onset + offset, batch_share=share)
            made = self._sample(tried, trials)
        except NotReplayable:
            return None
        return made if made.kind == "one sample" else None

    def _elsewhere(self, offset: int, trials: Trials) -> float | None:
        """What the named batch does from another state: it trades places with the first batch of the replay."""
        from whyspike.sample_interventions import SwapBatches

        first = min(trials.steps)
        here, there = trials.steps[first], trials.steps[offset]
        if first == offset or len(here) != 1 or len(there) != 1:
            return None
        made = trials.replay(SwapBatches(first, offset, here[0], there[0]))
        return area_above(made.state[: offset - first], trials.level) / trials.area

    def _others_here(self, offset: int, trials: Trials) -> float | None:
        """What other batches of the same size make of the event, in the named one's place; the median draw."""
        from whyspike.sample_interventions import OtherSamples

        try:
            made = [1 - trials.removed(OtherSamples(self.subject.draw, k, offset)) for k in range(DRAWS_HERE)]
        except NotReplayable:  # rows padded to another length
            return None
        return float(np.median(made))

    def _sample(self, found: Profile, trials: Trials) -> Profile:
        """Replace the samples of the named batch, those of the highest loss first."""
        from whyspike.sample_interventions import PutRow, ReplaceRow

        assert found.batch_step is not None
        offset = found.batch_step - found.onset
        held = trials.steps[offset]
        if len(held) != 1:
            return found
        batch, n = held[0], batches.size(held[0])
        self.subject.at(trials.pair.window, found.batch_step)
        rows = [0] if n == 1 else self._highest(batch, n)
        ids = trials.ids[offset]
        for row in rows[:SUSPECTS]:
            name = f"sample {ids[row]}" if ids is not None else f"row {row}"
            share = trials.removed(
                ReplaceRow(row, self.subject.draw, 0, offset, f"{name} of the batch {_at(offset)} replaced")
            )
            if share < DECIDES:
                continue
            other = None
            if n > 1:
                calm = next(r for r in reversed(self._order) if r != row)
                other = trials.removed(
                    ReplaceRow(
                        calm, self.subject.draw, 0, offset, f"another sample of the batch {_at(offset)} replaced"
                    )
                )
            moved = None
            first = min(trials.steps)
            if first < offset and not self.experiment.thrifty:  # it only describes
                put = PutRow(batches.take(batch, [row], n), first, f"{name} put into the batch {_at(first)}")
                made = trials.replay(put)
                moved = area_above(made.state[: offset - first], trials.level) / trials.area
            certain = other is None or other <= 1 - DECIDES
            return replace(
                found,
                kind="one sample" if certain and n > 1 and found.kind == "one batch" else found.kind,
                sample=int(ids[row]) if ids is not None else row,
                sample_known=ids is not None,
                sample_row=row,
                sample_share=share,
                sample_placebo=other,
                sample_moved=moved,
            )
        return found

    def _highest(self, batch: Any, n: int) -> list[int]:
        """The rows of a batch by their loss, the highest first; of a large batch only those of its worst piece."""
        model, loss_fn = self.subject.model, self.subject.loss_fn
        rows = list(range(n))
        if n > SINGLE_ROWS:
            from whyspike.attribute import canonical_loss

            pieces = [rows[k : k + SINGLE_ROWS // 4] for k in range(0, n, SINGLE_ROWS // 4)]
            losses = [canonical_loss(model, loss_fn, batches.take(batch, p, n), len(p), n=len(p)) for p in pieces]
            rows = pieces[int(np.argmax(np.nan_to_num(losses, nan=np.inf)))]
        losses = per_sample(model, loss_fn, batches.take(batch, rows, n), 1)
        order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")
        self._order = [rows[int(k)] for k in order]
        return self._order

    # ------------------------------------------------------------------ the size of the steps

    def _steps(self, found: Profile, trials: Trials) -> Profile:
        from whyspike.interventions import ScaleLr
        from whyspike.sample_interventions import OtherBatches

        if found.same_batch:
            shorter = trials.removed(ScaleLr(SHORTER, f"learning rate x {SHORTER:g}", "always"))
            kind: Kind = "instability" if shorter >= DECIDES else "undecided"
            return replace(found, kind=kind, sharpness=self._sharpness(trials))
        others: list[float] = []
        verdict = True if self.experiment.thrifty else None  # they only describe
        while verdict is None and len(others) < DRAWS:
            others.append(trials.removed(OtherBatches(self.subject.draw, len(others))))
            verdict = sequential(others)
        found = replace(found, others=tuple(others))
        # Where a replay is dear the cause's own change is asked first: half the rate does even more.
        half = trials.removed(ScaleLr(CUT, f"learning rate x {CUT:g}", "always")) if self.experiment.thrifty else 0.0
        if half < DECIDES:
            half = trials.removed(ScaleLr(HALF, f"learning rate x {HALF:g}", "always"))
        decided_by_batch = found.batch_share is not None and found.batch_share >= DECIDES and found.kind == "one batch"
        if half >= DECIDES and not decided_by_batch:
            return replace(found, kind="large steps")
        return found

    def _sharpness(self, trials: Trials) -> tuple[float, ...]:
        from whyspike import sharpness

        found: list[float] = []
        direction = None
        for offset in SHARP_AT[-DECIDING_AT:] if self.experiment.thrifty else SHARP_AT:
            held = trials.steps.get(offset, ())
            if len(held) != 1:
                continue
            self.subject.at(trials.pair.window, trials.onset + offset)
            try:
                made = sharpness.measure(
                    self.subject.model, self.subject.optimizer, self.subject.loss_fn, held[0], start=direction
                )
            except WhySpikeError:
                return ()
            found.append(made.ratio)
            direction = made.direction
        return tuple(found)


def enough(found: Iterable[Profile], event: Event, run: Run) -> bool:
    """Whether a verdict needs no profile of this event: others tell what it is.

    Its batch holds a sample that carries another one, or several others are of one kind.
    """
    profiles = list(found)
    named = [p.sample for p in profiles if p.kind == "one sample" and p.sample_known and p.sample is not None]
    if event.step in rows_of(run, named):
        return True
    kinds = [p.kind for p in profiles if p.kind not in ("one sample", "undecided")]
    return any(kinds.count(kind) >= OF_ONE_KIND for kind in kinds)


def sequential(shares: Sequence[float]) -> bool | None:
    """Wald's sequential test of how often other batches remove the event: True mostly, False rarely, None undecided.

    It tests a chance of .8 against one of .2, each wrong in 5 % of the cases at most.
    """
    log_ratio = sum(
        math.log(LIKELY / UNLIKELY) if s >= MATTERS else math.log((1 - LIKELY) / (1 - UNLIKELY)) for s in shares
    )
    line = math.log((1 - ERROR) / ERROR)
    return None if abs(log_ratio) < line else log_ratio > 0


class Trials:
    """The replays of one pair, and what each change removed of its area."""

    def __init__(self, experiment: Experiment, pair: Pair) -> None:
        from whyspike.replays import level_before, onset_of

        self.experiment, self.pair = experiment, experiment.replays.ready(pair)
        base = experiment.replay(pair, BASELINE)
        self.onset = base.event_step
        self._from = onset_of(base)
        self.level = level_before(base)
        self.area = self._area(base)
        self.height = max(base.state[self._from :], default=math.nan) / self.level if self.level > 0 else math.nan
        self.shares: dict[str, float] = {}
        held = [s for s in experiment.subject.capsule(pair.window.path).steps if s.batches]
        self.steps = {s.step - self.onset: s.batches or () for s in held if s.step - self.onset <= AFTER}
        self.ids = {s.step - self.onset: s.ids for s in held}

    def replay(self, intervention: Intervention) -> Replayed:
        return self.experiment.replay(self.pair, intervention)

    def removed(self, intervention: Intervention) -> float:
        """The share of the baseline's area that is gone."""
        share = 1 - self._area(self.replay(intervention)) / self.area
        self.shares[intervention.words] = share
        return share

    def reaches(self, intervention: Intervention, offset: int, share: float) -> float:
        """As `removed`, in a replay that ends once it is known that less than `share` will be removed.

        The area only grows: what it returns then is an upper bound, less than `share`.

        Args:
            offset: steps from the onset to the first one that is changed; it begins shortly before.
        """
        left, subject = (1 - share) * self.area, self.experiment.subject
        window = self._begun(offset)
        start = self.onset - subject.capsule(window.path).steps[0].step
        made = subject.replay(
            window,
            intervention,
            horizon=self.experiment.replays.reach,
            probed_from=self.onset,
            enough=lambda state: area_above(state[start:], self.level) > left,
        )
        found = 1 - area_above(made.excess_state[start:], self.level) / self.area
        self.shares[intervention.words] = found
        return found

    def _begun(self, offset: int) -> Window:
        """The window from some steps before the onset on, at most `APART` before the step at `offset`."""
        window = self.pair.window
        for lead in range(BEFORE - APART, -1, -APART):
            if -offset <= lead:
                window = self.experiment.subject.begun(window, lead)
        return window

    def _area(self, made: Replayed) -> float:
        return area_above(made.excess_state[self._from :], self.level)


def _at(offset: int) -> str:
    if offset == 0:
        return "of the onset"
    return f"{abs(offset)} step{'s' if abs(offset) > 1 else ''} {'before' if offset < 0 else 'after'} the onset"
