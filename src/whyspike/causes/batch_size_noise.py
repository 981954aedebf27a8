from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike import chance
from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

LARGER = 16  # times the batch size: a chance excess shrinks to a sixteenth
MOVED = 1.1  # the contract's line between a plotted number and a damaged network
WOBBLE = 1.25  # healthy trainings rise by less than this on fixed samples (detect.STATE_LOW, with its source)
OWN_BATCHES = tuple(
    f"the batch {at} skipped" for at in ("of the onset", "1 step after the onset", "2 steps after the onset")
)
MATTERS = 0.5  # of the rise: a batch without which half of it remains did not make it (profile.MATTERS)
LEAST_EVENTS = 7  # 2**-7 = .008: fewer distinct events cannot reach p = .01 in a sign-flip test
HALF = (
    0.5  # of an event's height, in logarithms, that the mean of micro-batch means makes (as grad-accum-normalization)
)
FEW = 0.7  # of the typical count that the loss is divided by


class BatchSizeNoise(Cause):
    """ordinary chance: a mini-batch that drew hard samples.

    What happens:
        The loss of a mini-batch is a mean over a few samples. In thousands of steps some batches are far above the mean
        by chance alone, the more so the smaller the batch and the longer the tail of the per-sample losses.

    How it looks:
        Single points above the others, at no fixed place; the next step is ordinary again and the probe loss is flat.

    How we test it:
        The losses of single samples are measured on the frozen network, and batches of the event's own size are drawn
        from them: a batch as high must be likely in as many steps. Then the step is replayed with other samples in
        the batch; as a placebo the ordinary batch before it gets other samples.

    What to do:
        Nothing. To see less of it, plot a running mean or the loss on a fixed probe set, or use larger batches.

    References:
        The standard error of a mean, sigma / sqrt(n). McCandlish et al. 2018, arXiv 1812.06162 (gradient noise scale).
    """

    family = "scale"
    aliases = ("mini-batch-noise", "noise")
    needs = ("batch_null",)
    rank = 60
    measure = "reported"
    harmless = True
    title = "ordinary mini-batch noise"

    def signature(self, seen: Observation) -> Suspicion | None:
        # Only single spikes and dips: chance has no period.
        single = [e for e in seen.events if e.kind in ("spike", "dip")]
        tested = [e for e in single if e.id in seen.batch_null]
        if not tested:
            return None
        line = chance.line(seen.run)
        still = [e for e in tested if not _moved(seen, e) and not _few_units(seen, e)]
        drawn = [e for e in still if seen.batch_null[e.id] > line]
        shown = drawn or tested
        unusual = min(shown, key=lambda e: seen.batch_null[e.id])
        evidence = [
            Evidence(
                statement="chance that a batch of that size is as far out, at the most unusual event",
                observed=f"{seen.batch_null[unusual.id]:.2g} (x {unusual.reported or float('nan'):.3g} at step {unusual.step})",
                expected=f"above {line:.2g}, one in twenty runs of {len(seen.run)} steps",
            )
        ]
        if not drawn:
            reason = (
                "the network moved with it"
                if all(_moved(seen, e) for e in tested)
                else "the batch has few of what the loss is divided by"
                if all(_few_units(seen, e) for e in tested if not _moved(seen, e))
                else "chance does not draw such a batch in this run"
            )
            return suspect(self, shown, evidence, outcome="refuted", reason=reason)
        # What is no higher than a batch that chance can draw, chance can draw as well.
        highest = max((e.reported or 0.0 for e in drawn if e.kind == "spike"), default=0.0)
        lower = [
            e
            for e in single
            if e.kind == "spike"
            and e not in drawn
            and not _moved(seen, e)
            and not _few_units(seen, e)
            and 0 < (e.reported or 0.0) <= highest
        ]
        return suspect(self, [*drawn, *lower], evidence)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import FillBatch, ReplaceSamples

        tested = [e for e in seen.events if e.id in seen.batch_null]
        # Fewer events cannot reach p = .01 together (2**-6 = .016), and one alone says little: the other samples may
        # be as hard. An episode of several high batches cannot be undone in one of them, and a dip is no excess.
        if len(tested) < LEAST_EVENTS or any(e.last_step > e.step or e.kind == "dip" for e in tested):
            return []
        size = LARGER * (seen.run.batch_size or 1)
        return [
            ReplaceSamples(draw, "other samples in their place"),
            FillBatch(draw, f"the same samples in a batch {LARGER} times as large", size=size),
        ]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReplaceSamples

        return ReplaceSamples(draw, "other samples in the ordinary batch before it", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        size = f" of {seen.run.batch_size} samples" if seen.run.batch_size else ""
        kinds = {e.kind for e in events}
        what, samples = ("dips", "easy") if kinds == {"dip"} else ("spikes", "hard")
        return f"The {what} are ordinary chance: mini-batches{size} that drew {samples} samples."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="none is needed; to see less of it plot a running mean or the loss on a fixed set of samples",
                    code={"torch": "smoothed = 0.98 * smoothed + 0.02 * loss.item()"},
                    applicability="safe",
                )
            )
        ]


def _moved(seen: Observation, event: Event) -> bool:
    """Whether the network moved with the event: by a tenth, and not as it wobbles under any batches."""
    if event.state is None or event.state < MOVED:
        return False
    profile = seen.profiles.get(event.id)
    if profile is None or not profile.height < WOBBLE:
        return True
    # With the batches at the event left out a wobble stays as it is.
    shares = [profile.share(words) for words in OWN_BATCHES]
    return max((s for s in shares if s is not None), default=1.0) >= MATTERS


def _few_units(seen: Observation, event: Event) -> bool:
    """Whether the loss is divided by a count that is small in this batch: then the divisor made it high, not chance.

    So it is where the mean of micro-batch means makes most of the height, in logarithms.
    """
    made = seen.accumulation
    if made is not None and made.differs and event.reported is not None:
        # A step that was not split is taken to be like those that were.
        here = {event.step} if made.at(event.step) is not None else {s.step for s in made.splits}
        return made.share_of(event.reported, here) >= HALF
    units = seen.units
    if units is None or units.interval[1] > -0.5:
        return False
    return units.by_step.get(event.step, units.typical) <= FEW * units.typical
