"""The values that flow from a recorded training to a diagnosis.

Everything here is frozen. The classes up to `Diagnosis` are the published JSON (schema_version 1): their
field names are the contract. The classes after it are what the stages hand to each other.

Units: losses and excesses are in nats unless said otherwise, steps are optimizer updates counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SCHEMA_VERSION = 1

Outcome = Literal["confirmed", "likely", "inconclusive", "refuted", "untested"]
SURER: dict[Outcome, int] = {"confirmed": 0, "likely": 1, "inconclusive": 2, "untested": 3, "refuted": 4}  # first
Status = Literal["explained", "healthy", "unexplained", "cannot-say"]
Harm = Literal["none", "cosmetic", "damaging"]
EventKind = Literal["spike", "dip", "level-shift", "divergence", "non-finite", "periodic"]
ArmName = Literal["baseline", "intervention", "placebo"]
Applicability = Literal["safe", "unsafe", "manual"]
Family = Literal["order", "scale", "optimizer", "data", "numerics", "network", "control"]

# --------------------------------------------------------------------------- the published document


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something about the record itself that the reader must know (`appended-runs`, `too-short`, …)."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What was read: where from, by which reader, how many steps, which signals."""

    source: str
    reader: str
    steps: int
    steps_per_epoch: int | None = None
    signals: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The one sentence, and what it rests on."""

    status: Status
    cause: str | None
    harm: Harm | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Factors whose product is reported loss / typical loss; `interval` holds a 95 % bootstrap interval for each."""

    scale: float
    weights: float
    data: float
    interval: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One episode of a run; heights are factors over the median of the 64 steps before it.

    A wave, smooth over its whole period, has the factor from its trough to its peak instead: of the loss and of the
    probe, both folded over the period and without the trend. It spans whole periods.
    """

    id: str
    kind: EventKind
    step: int
    last_step: int
    period: int | None = None
    reported: float | None = None
    state: float | None = None
    attribution: Attribution | None = None
    sample_ids: tuple[str, ...] = ()

    @property
    def is_wave(self) -> bool:
        """Whether a periodic event is a wave. A spike that repeats goes from its first to its last occurrence."""
        spans = self.last_step + 1 - self.step
        return self.kind == "periodic" and bool(self.period) and spans % (self.period or 1) == 0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A statement with what was observed beside what would be expected."""

    statement: str
    observed: str
    expected: str
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of the experiment: the excess of each pair, and the share of the baseline's that it removed.

    The excess of a pair is the area above the level before the event, in log-loss times steps: of the probe loss over
    the steps that follow where the network moved, else of the logged loss over the event's own steps (for one step of a
    periodic event that is its amplitude in nats).
    """

    arm: ArmName
    words: str
    n: int
    excess: tuple[float, ...]
    share_removed: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cure:
    """What to do, in words and in code. `verified` is None until it was trained from scratch."""

    words: str
    code: Mapping[str, str]
    applicability: Applicability
    verified: bool | None = None
    numbers: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the evidence says about one cause. `events` is empty where an identity proves it and no event shows it."""

    cause: str
    outcome: Outcome
    harm: Harm
    events: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()
    arms: tuple[Arm, ...] = ()
    cures: tuple[Cure, ...] = ()
    reason: str | None = None

    @property
    def silent(self) -> bool:
        """Whether no event shows it: proven by an identity all the same."""
        return not self.events


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result of `whyspike check`: something wrong with a setup before it trains."""

    cause: str
    text: str
    observed: str
    expected: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What `whyspike check` says: findings (wrong) and notes (ordinary, but they invite something)."""

    schema_version: int = SCHEMA_VERSION
    findings: tuple[Finding, ...] = ()
    notes: tuple[Note, ...] = ()


# --------------------------------------------------------------------------- between the stages


@dataclass(frozen=True)
class Series:
    """A signal that was measured at some steps: `value[k]` belongs to the optimizer step `step[k]`."""

    step: np.ndarray  # int64 [K], increasing
    value: np.ndarray  # float64 [K]


@dataclass(frozen=True)
class Mark:
    """What happened once, before the step `step`: an epoch's end, an evaluation, a doubled stride (architecture.md)."""

    step: int
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training did: one row per optimizer step. Rows are in order and steps do not repeat."""

    source: str
    reader: str
    step: np.ndarray  # int64 [T]
    loss: np.ndarray  # float64 [T], as the user logged it; may hold nan and inf
    epoch: np.ndarray | None = None  # int64 [T], from 0
    index: np.ndarray | None = None  # int64 [T], position of the step in its epoch, from 0
    n_samples: np.ndarray | None = None  # int64 [T], samples of the step, all micro-steps together
    sample_ids: tuple[np.ndarray, ...] | None = None  # T arrays of dataset indices, in batch order
    lr: np.ndarray | None = None  # float64 [T], of the first parameter group
    signals: Mapping[str, Series] = field(default_factory=dict)
    steps_per_epoch: int | None = None
    batch_size: int | None = None  # nominal samples per step (the most frequent n_samples)
    facts: Mapping[str, object] = field(default_factory=dict)  # the header of the record, as written
    capsules: tuple[Path, ...] = ()  # pinned snapshots, in order of their step
    trials: tuple[Trial, ...] = ()
    marks: tuple[Mark, ...] = ()  # in the order in which they were written
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.step)

    def marked(self, *names: str) -> tuple[Mark, ...]:
        """The marks of these names."""
        return tuple(m for m in self.marks if m.name in names)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One replay of one arm of one pair, or (backend "scratch") one training of one arm with one seed.

    `reported[k]` is the loss as logged at step `first_step + k`, nan where the step was skipped; `state[k]` the loss on
    the probe set right after that step. The references are their levels before the event. Pairs of the same number
    share everything but the arm.
    """

    cause: str
    arm: ArmName
    words: str
    event: str
    pair: int
    backend: Literal["snapshot", "scratch"]
    first_step: int
    event_step: int
    reported: tuple[float, ...]
    state: tuple[float, ...]
    reported_reference: float
    state_reference: float
    excess: float
    reproduced: bool | None = None  # baseline only: losses bitwise those of the record
    noise: float | None = None  # baseline only: largest relative difference to the record


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """The batch-size exponent of a loss, L(n) = n**alpha * (L1 + gamma * log n) on duplicated samples."""

    alpha: float
    gamma: float
    permutation: float  # std / |mean| of the loss over row permutations; 1e-7 is rounding
    losses: tuple[float, float, float]  # at 1, 2 and 4 copies


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """A cause that could explain events, with its evidence and how surely the evidence alone says so."""

    cause: str
    events: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    outcome: Outcome  # "likely", "refuted" or "untested": what observation alone allows
    reason: str | None = None
    identity: bool = False  # the evidence is an identity (an exact exponent, equal ids): it proves without trials,
    # and needs no event
    alone: bool = False  # the identity is a fault in itself: it stands even where no event comes from it
    harm: Harm | None = None  # where the evidence itself shows it; None: what events and trials show
    left_out: str | None = None  # of its experiment, for want of time


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result. Its fields are the published JSON, but for the last three, which serve text and pictures.

    `missing` says what could not be looked at, and how to supply it.
    """

    schema_version: int = SCHEMA_VERSION
    run: RunInfo
    answer: Answer
    events: tuple[Event, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    record: Run | None = field(default=None, compare=False, repr=False)
    trials: tuple[Trial, ...] = field(default=(), compare=False, repr=False)
    missing: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        from whyspike.reports.terminal import render

        return render(self)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The document of schema_version 1, as text."""
        from whyspike.reports.json import render

        return render(self, indent=indent)

    def to_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one self-contained file that opens without a network.

        Raises:
            OutputExists: the file is there already and `force` is not set.
        """
        from whyspike.reports.html import write

        return write(self, path, force=force)

    def _repr_html_(self) -> str:
        from whyspike.reports.html import fragment

        return fragment(self)
