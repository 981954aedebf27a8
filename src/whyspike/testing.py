"""The contract that a cause and a case must pass. Third parties run it on their own.

```python
from whyspike.testing import check_case, check_cause

def test_my_cause():
    check_cause(MyCause())

def test_my_case():
    check_case(my_case, seed=100)
```

Both raise `AssertionError` with a sentence that says what is wrong and what is needed.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from whyspike.cause import SECTIONS, Cause, Observation, Setup
from whyspike.types import Applicability, Cure, Event, EventKind, Family, Finding, Note, Run, Suspicion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from whyspike.case import Build, Case
    from whyspike.types import Diagnosis

NEEDS = ("n_samples", "sample_ids", "steps_per_epoch", "exponent", "replay", "units", "batch_null")
HEAVY = ("torch", "scipy", "polars")  # `whyspike list` imports every cause and none of these


def empty_setup() -> Setup:
    """A setup of which nothing is known."""
    return Setup(
        dataset_size=None,
        batch_size=None,
        last_batch=None,
        shuffle=None,
        drop_last=None,
        accumulate=1,
        exponent=None,
        exponent_reason="it was not measured",
    )


def bare_observation(steps: int = 256, events: tuple[Event, ...] = ()) -> Observation:
    """A run with a loss and nothing else: no sizes, no epochs, no ids, no probe, no capsules."""
    loss = np.full(steps, 1.0)
    run = Run(source="a test", reader="test", step=np.arange(steps), loss=loss)
    return Observation(run=run, events=events)


# --------------------------------------------------------------------------- a cause


def check_cause(cause: Cause) -> None:
    """Check what every cause promises, without training anything.

    Its docstring explains it; its names fit; it keeps quiet where it knows nothing; what it would change and what it
    advises can be read. Its interventions are built here, but not run: `check_case` does that.

    Raises:
        AssertionError: a promise is not kept.
    """
    _check_words(cause)
    _check_names(cause)
    _check_light(cause)
    assert cause.preflight(empty_setup()) is None, (
        f"{cause.id}: preflight must say nothing of a setup it knows nothing of"
    )
    quiet = bare_observation()
    assert cause.signature(quiet) is None, f"{cause.id}: signature must return None where there is no event"
    for kind in get_args(EventKind):
        event = Event(id="e1", kind=kind, step=128, last_step=128, reported=None if kind == "non-finite" else 3.0)
        _check_one(cause, bare_observation(events=(event,)))


def _check_words(cause: Cause) -> None:
    text = inspect.getdoc(type(cause)) or ""
    assert text, f"{cause.id}: the class needs a docstring; it is the page of this cause"
    for section in SECTIONS:
        assert cause.section(section), f"{cause.id}: the docstring has no text under {section!r}"
    places = [text.index(f"\n{section}:") for section in SECTIONS]
    assert places == sorted(places), f"{cause.id}: the sections must come in this order: {', '.join(SECTIONS)}"
    summary = cause.summary
    assert len(summary) <= 120, (
        f"{cause.id}: the first line has {len(summary)} characters; at most 120 fit into the list"
    )
    assert cause.title, f"{cause.id}: title is missing"
    assert "\n" not in cause.title, f"{cause.id}: title must be one line"
    assert not cause.title.endswith("."), f"{cause.id}: title ends without a full stop: {cause.title!r}"
    first = cause.title.split()[0]
    assert first[0].islower() or (len(first) > 1 and first.isupper()), (
        f"{cause.id}: title begins in lower case: {cause.title!r}"
    )


def _check_names(cause: Cause) -> None:
    kind = type(cause)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){0,4}", cause.id), (
        f"{cause.id!r}: an id is a few words joined by hyphens"
    )
    if kind.__module__.startswith("whyspike.causes."):
        file = kind.__module__.rsplit(".", 1)[1]
        assert cause.id == file.replace("_", "-"), (
            f"{kind.__name__} in {file}.py has the id {cause.id!r}; file and id must agree"
        )
    assert cause.family in get_args(Family), (
        f"{cause.id}: family {cause.family!r} is none of {', '.join(get_args(Family))}"
    )
    unknown = set(cause.needs) - set(NEEDS)
    assert not unknown, f"{cause.id}: needs {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}"
    assert cause.id not in cause.aliases, f"{cause.id}: an alias is another word, never the id itself"


def _check_light(cause: Cause) -> None:
    """Importing the cause must load nothing heavy: the catalogue is listed in well under a second."""
    module = type(cause).__module__
    if module == "__main__":
        return
    code = (
        f"import importlib, sys\nimportlib.import_module({module!r})\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    if made.returncode and "No module named" in made.stderr:
        return  # defined where another process does not find it, as in a test file
    assert not made.stdout.strip(), (
        f"{cause.id}: its module imports {made.stdout.strip()} at the top; import inside a function"
    )


def _check_one(cause: Cause, seen: Observation) -> None:
    """What a cause says about an observation, whatever it is: well formed, and readable."""
    suspicion = cause.signature(seen)
    assert suspicion is None or isinstance(suspicion, Suspicion), f"{cause.id}: signature returns a Suspicion or None"
    if suspicion is not None:
        known = {e.id for e in seen.events}
        assert suspicion.cause == cause.id, f"{cause.id}: its suspicion names {suspicion.cause!r}"
        assert suspicion.events or suspicion.identity, (
            f"{cause.id}: a suspicion names the events it is about; only an identity proves a cause without any"
        )
        assert set(suspicion.events) <= known, f"{cause.id}: its suspicion names events that are not there"
        assert suspicion.evidence, f"{cause.id}: a suspicion shows its evidence"
        for row in suspicion.evidence:
            assert row.statement, f"{cause.id}: a row of its evidence has no statement"
            assert row.observed, f"{cause.id}: {row.statement!r} has nothing observed"
            assert row.expected, f"{cause.id}: {row.statement!r} has nothing expected"
        assert suspicion.outcome in ("likely", "refuted", "untested"), (
            f"{cause.id}: observation alone cannot say {suspicion.outcome}"
        )
        if suspicion.outcome != "likely":
            assert suspicion.reason, f"{cause.id}: {suspicion.outcome} needs a reason"
    sentence = cause.sentence(seen, seen.events)
    assert sentence[:1].isupper(), f"{cause.id}: the answer is a sentence: {sentence!r}"
    assert sentence.endswith("."), f"{cause.id}: the answer is a sentence: {sentence!r}"
    _check_experiment(cause, seen)
    _check_cures(cause, seen)


def _check_experiment(cause: Cause, seen: Observation) -> None:
    from whyspike.seams import Intervention

    def draw(n: int) -> Any:
        raise AssertionError(f"{cause.id}: samples are drawn when an intervention acts, not when it is made")

    arms = cause.interventions(seen, draw)
    for arm in arms:
        assert isinstance(arm, Intervention), f"{cause.id}: {arm!r} is no whyspike.seams.Intervention"
        assert arm.words, f"{cause.id}: {type(arm).__name__} has no words"
        assert arm.words != Intervention.words, f"{cause.id}: {type(arm).__name__} says that it changes nothing"
    words = [arm.words for arm in arms]
    assert len(words) == len(set(words)), (
        f"{cause.id}: two interventions have the same words; trials are told apart by them"
    )


def _check_cures(cause: Cause, seen: Observation) -> None:
    from whyspike.seams import Intervention

    for scratch in cause.cures(seen):
        cure: Cure = scratch.cure
        assert cure.words, f"{cause.id}: a cure has no words"
        assert cure.code.get("torch"), f"{cause.id}: the cure {cure.words!r} has no code for torch"
        assert cure.applicability in get_args(Applicability), f"{cause.id}: applicability {cure.applicability!r}"
        if scratch.make is not None:
            made = scratch.make()
            assert isinstance(made, Intervention), f"{cause.id}: the cure {cure.words!r} makes no Intervention"


def check_placebo(cause: Cause, seen: Observation) -> None:
    """Where a cause would intervene it names a placebo, in other words than its interventions.

    Raises:
        AssertionError: there is none, or it cannot be told from an intervention.
    """
    arms = cause.interventions(seen, lambda n: None)
    if not arms:
        return
    placebo = cause.placebo(seen, lambda n: None)
    assert placebo is not None, f"{cause.id}: interventions need a placebo, as large a change that should not matter"
    assert placebo.words, f"{cause.id}: the placebo has no words"
    assert placebo.words not in [arm.words for arm in arms], f"{cause.id}: the placebo is called like an intervention"


def check_preflight(cause: Cause, setup: Setup) -> Finding | Note | None:
    """What a cause says of a setup, checked for its form.

    Raises:
        AssertionError: a finding or note names another cause, or a part of it is empty.
    """
    made = cause.preflight(setup)
    if isinstance(made, Finding):
        assert made.cause == cause.id, f"{cause.id}: its finding names {made.cause!r}"
        assert made.text, f"{cause.id}: its finding has no text"
        assert made.observed, f"{cause.id}: its finding has nothing observed"
        assert made.expected, f"{cause.id}: its finding has nothing expected"
        assert made.cure, f"{cause.id}: its finding advises nothing"
    elif made is not None:
        assert isinstance(made, Note), f"{cause.id}: preflight returns a Finding, a Note or None"
        assert made.id == cause.id, f"{cause.id}: its note has the id {made.id!r}"
        assert made.text, f"{cause.id}: its note has no text"
    return made


# --------------------------------------------------------------------------- a case


@dataclass(frozen=True)
class Checked:
    """What a case and its twin were diagnosed as, for one seed."""

    seed: int
    sick: Diagnosis
    healthy: Diagnosis
    problems: tuple[str, ...]  # each a sentence; none when the contract is kept


def score_case(case: Case, seed: int) -> Checked:
    """Train the case and its twin, diagnose and prove both, and say what falls short of the contract.

    The cures are not trained: they have seeds and tests of their own.
    """
    sick, healthy = (_diagnosed(build, seed) for build in (case.sick, case.healthy))
    return Checked(seed, sick, healthy, (*_sick_problems(case, sick), *_healthy_problems(case, healthy)))


def check_case(case: Case, seed: int) -> Checked:
    """Check that a case is diagnosed as declared, and its twin as healthy.

    The sick training must be answered with the case's cause, confirmed (or likely, where only its log is left), and no
    other cause may be confirmed than those declared in `also_true`; one of these may be the answer where it is the root
    (of a lower rank). For a harmless cause the telling run must be
    answered with it, confirmed or likely, as harmless; a telling run without any event is healthy, too. The twin must
    be healthy, with nothing confirmed that does harm.

    Raises:
        AssertionError: it is not so; the message holds every shortcoming.
    """
    made = score_case(case, seed)
    assert not made.problems, f"{case.name}, seed {seed}: {'; '.join(made.problems)}"
    return made


def _diagnosed(build: Build, seed: int) -> Diagnosis:
    from whyspike.pipeline import take

    return take(build, seed=seed, verify_cures=False)


def _confirmed(made: Diagnosis) -> Mapping[str, str]:
    return {v.cause: v.harm for v in made.verdicts if v.outcome == "confirmed"}


def _sick_problems(case: Case, made: Diagnosis) -> list[str]:
    from whyspike.cause import find

    said, verdicts = made.answer, {v.cause: v for v in made.verdicts}
    problems = []
    if find(case.cause).harmless and said.status == "healthy" and not made.events:
        return problems  # chance does not strike in every run; silence is as right as the explanation
    # What only carries a damage on is no answer where its declared root is found.
    roots = {c for c in case.also_true if find(c).rank < find(case.cause).rank}
    if said.cause != case.cause and said.cause not in roots:
        problems.append(f"the answer is {said.cause or said.status}, {case.cause} was declared ({said.sentence})")
    outcome = verdicts[case.cause].outcome if case.cause in verdicts else "not suspected"
    harmless = find(case.cause).harmless
    of_log = made.record is not None and "reader_says" in made.record.facts  # nothing can be replayed
    wanted = ("confirmed", "likely") if harmless or of_log else ("confirmed",)
    if outcome not in wanted:
        reason = verdicts[case.cause].reason if case.cause in verdicts else None
        problems.append(f"{case.cause} is {outcome}, {' or '.join(wanted)} is needed{f' ({reason})' if reason else ''}")
    if harmless and said.status != "healthy":
        problems.append(f"the telling run of a harmless cause is {said.status}, healthy is needed ({said.sentence})")
    wrong = sorted(set(_confirmed(made)) - {case.cause, *case.also_true})
    if wrong:
        problems.append(f"confirmed without being declared: {', '.join(wrong)}")
    return problems


def _healthy_problems(case: Case, made: Diagnosis) -> list[str]:
    problems = []
    if made.answer.status != "healthy":
        problems.append(f"the twin is {made.answer.status}, healthy is needed ({made.answer.sentence})")
    wrong = sorted(cause for cause, harm in _confirmed(made).items() if harm != "none")
    if wrong:
        problems.append(f"confirmed in the twin: {', '.join(wrong)}")
    return problems
