"""What a cause is, and the catalogue of them.

One file in `causes/` is one cause: `causes/small_last_batch.py` holds `class SmallLastBatch(Cause)` with the id
`small-last-batch`. The folder is enumerated; nothing is registered. Third parties add causes through the entry
point group `whyspike.causes`, whose values are `Cause` classes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whyspike.errors import UnknownCause
from whyspike.types import Attribution, Cure, Event, Evidence, Exponent, Family, Finding, Note, Run, Suspicion, Trial

if TYPE_CHECKING:
    from whyspike.accumulation import Accumulation
    from whyspike.batchnorm import EvalGap, Normalised
    from whyspike.curve import Curve
    from whyspike.excess import Measure
    from whyspike.firstloss import FirstLoss
    from whyspike.gaps import GapCurve
    from whyspike.numerics import Numerics
    from whyspike.periods import PeriodResult
    from whyspike.plotted import Plotted
    from whyspike.preflight.probes.sample_order import Order
    from whyspike.profile import Profile
    from whyspike.reproduction import Reproduction
    from whyspike.reread import SameDraws
    from whyspike.sampling import Sampling
    from whyspike.seams import Intervention
    from whyspike.terms import Terms

Draw = Callable[[int], Any]

SECTIONS = ("What happens", "How it looks", "How we test it", "What to do", "References")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a preflight may look at: a training before it trains, already measured. Numbers only, no model."""

    dataset_size: int | None  # N, samples of one epoch
    batch_size: int | None  # B, nominal
    last_batch: int | None  # samples of an epoch's last step; equal to batch_size when N divides or drop_last is set
    shuffle: bool | None
    drop_last: bool | None
    accumulate: int
    exponent: Exponent | None  # None when it could not be measured; then `exponent_reason` says why
    exponent_reason: str | None
    facts: Mapping[str, object] = field(default_factory=dict)  # optimizer name, momentum, …
    numerics: Numerics | None = None  # of the loss function; None where it could not be looked at
    evaluation: tuple[str, ...] | None = None  # what a call of evaluate(model) changes; None: not known
    # Of the micro-batches of a step: the mean of their losses, and the loss of all their samples at once, in eval mode
    split: tuple[float, float] | None = None
    # Mean loss of the same samples in batches of each size, in train mode; None where it raises. For BatchNorm only
    by_size: Mapping[int, float | None] = field(default_factory=dict)
    first_loss: FirstLoss | None = None  # of a cross-entropy on logits; None for any other loss
    order: Order | None = None  # of the sample ids; None where the loader has none
    # ("ratio", norm of a second gradient of one batch over the first), ("left", …) or ("freed", nan): see the probe
    backward: tuple[str, float] | None = None
    resumed: tuple[str, ...] = ()  # parameters that are others after save, load and a step
    schedule: tuple[float, ...] = ()  # learning rate of every update to come; empty without a scheduler
    schedule_raised: str | None = None
    precision: tuple[float, float] | None = None  # the first loss as it is, and in float32, where the two are not alike


@dataclass(frozen=True, kw_only=True)
class Units:
    """How the logged loss of ordinary full batches follows a count of units in the batch (boxes, valid tokens)."""

    name: str  # which count: "positives of batch[1]", or the name the user logged
    slope: float  # of log loss against log units, over full-size batches
    interval: tuple[float, float]  # 95 %, bootstrap
    correlation: float
    by_step: Mapping[int, float]  # units of each step it was counted at
    typical: float  # median


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that was observed about a run, for the causes to judge. Parts that could not be had are None."""

    run: Run
    events: tuple[Event, ...]
    attributions: Mapping[str, Attribution] = field(default_factory=dict)  # by event id
    exponent: Exponent | None = None
    units: Units | None = None
    batch_null: Mapping[str, float] = field(default_factory=dict)  # event id → p of the batch-mean null
    numerics: Numerics | None = None
    normalised: Mapping[str, Normalised] = field(default_factory=dict)  # by event id, where the network has BatchNorm
    eval_gaps: Sequence[EvalGap] = ()  # train against eval mode at some states, where the network has BatchNorm
    first_loss: FirstLoss | None = None  # before the first step, of a cross-entropy on logits
    reproductions: Sequence[Reproduction] = ()  # recorded windows that were run again unchanged, in order
    profiles: Mapping[str, Profile] = field(default_factory=dict)  # by event id, of the network's own spikes
    unprofiled: tuple[str, ...] = ()  # spikes of the network for whose profile there was no time, or no need
    periods: tuple[PeriodResult, ...] = ()  # tests of the periods that the run has by itself, the epoch first
    reread: Mapping[int, float] = field(default_factory=dict)  # step → share of its samples that read the same again
    same_draws: SameDraws | None = None  # of a loader that draws at random: whether its epochs are the same
    accumulation: Accumulation | None = None  # what is done with the micro-batches of a step; None without any
    replayable: bool = False  # model, loss_fn and capsules are at hand
    gaps: GapCurve | None = None  # how a sample's loss depends on when it was last trained on; for waves over the epoch
    curve: Curve | None = None  # the patterns of the curve; None where nobody looked
    missing: tuple[str, ...] = ()  # what could not be looked at, and how to supply it

    @cached_property
    def sampling(self) -> Sampling | None:
        """Which samples the run drew, and in which order; None when their ids are not known."""
        from whyspike.sampling import sampling

        return sampling(self.run)

    @cached_property
    def plotted(self) -> Mapping[str, Plotted]:
        """The numbers that the user logged and that are a formula of the recorded losses, by their name."""
        from whyspike.plotted import plotted

        return plotted(self.run)

    @cached_property
    def terms(self) -> Terms | None:
        """The logged numbers that add up to the loss; None when they do not."""
        from whyspike.terms import terms

        return terms(self.run)

    def event(self, event_id: str) -> Event:
        return next(e for e in self.events if e.id == event_id)

    def median_gradient_norm(self) -> float | None:
        """Median of the recorded global gradient norms; None when none was recorded."""
        found = self.run.signals.get("gradient_norm")
        if found is None or not len(found.value):
            return None
        ordered = sorted(v for v in found.value.tolist() if isfinite(v))
        return ordered[len(ordered) // 2] if ordered else None

    def momentum(self) -> float | None:
        """Decay of the optimizer's first moment (SGD's momentum, Adam's beta1); None without one."""
        optimizer = self.run.facts.get("optimizer")
        defaults = optimizer.get("defaults") if isinstance(optimizer, Mapping) else None
        if not isinstance(defaults, Mapping):
            return None
        if isinstance(defaults.get("betas"), (list, tuple)):
            return float(defaults["betas"][0]) or None
        return float(defaults.get("momentum") or 0.0) or None

    def last_batch_events(self) -> tuple[Event, ...]:
        """The events that sit on an epoch's last step, a periodic one included."""
        return tuple(e for e in self.events if is_on_last_batch(self.run, e))


def is_on_last_batch(run: Run, event: Event) -> bool:
    """Whether an event begins on the last step of an epoch."""
    if run.index is None or not run.steps_per_epoch or run.steps_per_epoch < 2:
        return False
    row = int(run.step.searchsorted(event.step))
    return row < len(run) and int(run.index[row]) == run.steps_per_epoch - 1


@dataclass(frozen=True, kw_only=True)
class ScratchCure:
    """How a cure is trained from scratch: as an intervention at the seams of every step."""

    cure: Cure
    make: Callable[[], Intervention] | None = None  # None: it cannot be verified at the seams
    expected: Literal["cures", "protects", "fails"] = "cures"  # "fails": shown because people try it


class Cause:
    """A reason why a loss spikes. The docstring of a subclass has the sections named in `SECTIONS`.

    Its first line completes the sentence "the loss spiked because of ...".
    """

    family: ClassVar[Family]
    status: ClassVar[Literal["stable", "preview"]] = "stable"
    aliases: ClassVar[tuple[str, ...]] = ()
    # of "n_samples", "sample_ids", "steps_per_epoch", "exponent", "units", "batch_null", "replay"
    needs: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 50  # among confirmed causes the answer is the lowest: roots before what they set off
    harmless: ClassVar[bool] = False  # expected behaviour: harm is "none"
    measure: ClassVar[Measure | None] = None  # what it is judged by; None: the network where it moved, else the plot
    window: ClassVar[Literal["event", "epoch"]] = "event"  # what a trial replays; "epoch": measured by the pattern
    one_event: ClassVar[bool] = False  # a run has few such events by its nature: one is ranked against placebo draws
    demo: ClassVar[str] = ""  # the case that shows it, where none is named as the cause
    title: ClassVar[str] = ""  # the headline: lower case, one sentence without a full stop, stands alone
    # The cheapest thing that decides it where only a log is left; lower case, without a full stop.
    decides: ClassVar[str] = "record the training with whyspike.watch and prove it"

    @property
    def id(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return inspect.getdoc(type(self)).splitlines()[0]  # type: ignore[union-attr]

    def section(self, name: str) -> str:
        """One section of the docstring, without its heading."""
        text = inspect.getdoc(type(self)) or ""
        heads = "|".join(re.escape(s) for s in SECTIONS)
        parts = re.split(rf"^({heads}):?\s*$", text, flags=re.MULTILINE)
        return dict(zip(parts[1::2], (p.strip() for p in parts[2::2]), strict=True)).get(name, "")

    # ------------------------------------------------------------------ what a subclass says

    def preflight(self, setup: Setup) -> Finding | Note | None:
        """What can be said before training: a finding is wrong, a note invites this cause. None: not this."""
        return None

    def signature(self, seen: Observation) -> Suspicion | None:
        """What the record says: evidence observed beside expected. None when nothing points here."""
        raise NotImplementedError

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        """Changes that must remove the event if this is the cause, the most specific first.

        The first one decides the verdict; the others are shown beside it. `draw(n)` returns a batch of n other
        training samples.
        """
        return ()

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int] | None:
        """The steps that the experiment replays around; None for those at which the events begin.

        Of what happens between two steps, name the later one: a replay begins before it, so that it can be left out.
        """
        return None

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        """As large a change that should not matter, and why in its `words`."""
        return None

    def remarks(self, seen: Observation, trials: Sequence[Trial]) -> Sequence[Evidence]:
        """What else this cause reads from its own trials, beside the share removed."""
        return ()

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        """The answer in one or two sentences, for this run."""
        return f"{self.title[:1].upper()}{self.title[1:]}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        """What to do about it."""
        return ()


def suspect(cause: Cause, events: Sequence[Event], evidence: Sequence[Evidence], **kw: Any) -> Suspicion:
    """A suspicion of `cause`, "likely" unless said otherwise."""
    kw.setdefault("outcome", "likely")
    return Suspicion(cause=cause.id, events=tuple(e.id for e in events), evidence=tuple(evidence), **kw)


@cache
def catalogue() -> Mapping[str, Cause]:
    """Every cause by its id: the files of `causes/`, then the entry points `whyspike.causes`."""
    import whyspike.causes as package

    classes: list[type[Cause]] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")):
        found = importlib.import_module(f"{package.__name__}.{module}")
        name = "".join(part.capitalize() for part in module.split("_"))
        classes.append(getattr(found, name))
    classes += [point.load() for point in entry_points(group="whyspike.causes")]
    causes = [cls() for cls in classes]
    return {c.id: c for c in causes}


def find(name: str) -> Cause:
    """The cause of that id or alias.

    Raises:
        UnknownCause: there is none; the message names the nearest ids.
    """
    causes = catalogue()
    if name in causes:
        return causes[name]
    for cause in causes.values():
        if name in cause.aliases:
            return cause
    from difflib import get_close_matches

    near = get_close_matches(name, list(causes), n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise UnknownCause(f"there is no cause named {name!r}.{hint} `whyspike list` shows all of them")
