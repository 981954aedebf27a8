"""A cause that an identity proves needs no event: what is said when it has one, and when it has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import whyspike.cause
from whyspike import pipeline, reports
from whyspike.cause import Cause, Observation, ScratchCure, catalogue, suspect
from whyspike.output import exit_code
from whyspike.testing import bare_observation, check_cause
from whyspike.types import Cure, Diagnosis, Event, Evidence, Harm, Run


class FrozenLayer(Cause):
    """a layer that the optimizer does not train.

    What happens:
        A layer was left out of the optimizer.

    How it looks:
        Often not at all.

    How we test it:
        Its weights are the same bits before and after a thousand steps.

    What to do:
        Give the optimizer all parameters.

    References:
        None; it serves the tests.
    """

    family = "network"
    title = "a layer is not trained"
    harm_shown: Harm | None = None
    blames_events = False

    def signature(self, seen: Observation):
        if seen.run.facts.get("moved") is not False:
            return None
        same = Evidence(statement="weights of the layer that changed", observed="0 of 64", expected="64")
        events = seen.events if self.blames_events else ()
        return suspect(self, events, [same], identity=True, harm=self.harm_shown)

    def cures(self, seen: Observation):
        cure = Cure(words="train it", code={"torch": "SGD(model.parameters())"}, applicability="safe")
        return [ScratchCure(cure=cure)]


class Expected(FrozenLayer):
    __doc__ = FrozenLayer.__doc__
    harmless = True
    rank = 1
    title = "an expected thing"


class Point:
    """As an entry point of the group `whyspike.causes`."""

    def __init__(self, kind: type[Cause]) -> None:
        self.kind = kind

    def load(self) -> type[Cause]:
        return self.kind


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FrozenLayer]]:
    """The catalogue with a cause of someone else's in it."""

    class Mine(FrozenLayer):
        __doc__ = FrozenLayer.__doc__

        @property
        def id(self) -> str:
            return "frozen-layer"

    monkeypatch.setattr(whyspike.cause, "entry_points", lambda group: [Point(Mine), Point(Expected)])
    catalogue.cache_clear()
    yield Mine
    catalogue.cache_clear()


def observed(*, events: tuple[Event, ...] = (), steps: int = 256) -> Observation:
    run = Run(source="a test", reader="test", step=np.arange(steps), loss=np.full(steps, 1.0), facts={"moved": False})
    return Observation(run=run, events=events)


def diagnosed(seen: Observation) -> Diagnosis:
    from whyspike.suspect import suspect as all_suspicions

    return pipeline._conclude(seen, all_suspicions(seen), {})


def text(made: Diagnosis, format: str) -> str:
    return " ".join(reports.render(made, format).split())


SPIKE = Event(id="e1", kind="spike", step=100, last_step=101, reported=3.0, state=1.0)


def test_it_keeps_the_contract_of_a_cause(known):
    check_cause(known())


def test_only_an_identity_may_name_no_event():
    class Guessed(FrozenLayer):
        __doc__ = FrozenLayer.__doc__

        def signature(self, seen: Observation):
            return suspect(self, (), []) if seen.events else None

    with pytest.raises(AssertionError, match="only an identity"):
        check_cause(Guessed())


def test_without_an_event_it_is_the_answer_all_the_same(known):
    made = diagnosed(observed())
    assert (made.answer.status, made.answer.cause, made.answer.harm) == ("explained", "frozen-layer", "cosmetic")
    assert made.answer.sentence == "A layer is not trained. No event of this loss shows it."
    assert exit_code(made) == 1
    assert text(made, "full").startswith("confirmed[frozen-layer]: a layer is not trained")
    assert "256 steps read from a test" in text(made, "full")
    assert "proven without an event: none of this loss shows it" in text(made, "full")
    assert "Proven without an event" in text(made, "markdown")
    assert "Proven without an event" in text(made, "html")
    assert text(made, "github").startswith("::warning title=whyspike%3A confirmed[frozen-layer]::")
    assert text(made, "concise").startswith("confirmed[frozen-layer]: a layer is not trained (cosmetic, 256 steps")
    first = json.loads(reports.render(made, "json"))["verdicts"][0]
    assert (first["cause"], first["outcome"], first["harm"], first["events"]) == (
        "frozen-layer",
        "confirmed",
        "cosmetic",
        [],
    )


@pytest.mark.parametrize("format", sorted(reports.FORMATS))
def test_where_the_evidence_shows_the_damage_it_is_said(known, format: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known, "harm_shown", "damaging")
    made = diagnosed(observed())
    assert made.answer.sentence == "A layer is not trained. It damages the network."
    assert "frozen-layer" in text(made, format)


def test_a_harmless_one_alone_leaves_the_run_healthy(known, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known, "signature", lambda self, seen: None)
    made = diagnosed(observed())
    assert (made.answer.status, made.answer.cause, made.answer.harm) == ("healthy", "expected", "none")
    assert made.answer.sentence.startswith("Nothing is wrong: over 256 steps")
    assert made.answer.sentence.endswith("An expected thing. This is expected and does no harm.")
    assert exit_code(made) == 0
    assert "expected behaviour: nothing needs doing" in text(made, "full")


def test_what_needs_doing_comes_before_what_does_not(known, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Expected, "blames_events", True)
    made = diagnosed(observed(events=(SPIKE,)))
    assert [v.cause for v in made.verdicts][:2] == ["frozen-layer", "expected"]
    assert made.answer.status == "explained"
    assert exit_code(made) == 1


def test_events_that_it_does_not_explain_are_said(known):
    made = diagnosed(observed(events=(SPIKE,)))
    assert made.answer.cause == "frozen-layer"
    assert made.answer.sentence.endswith("1 event is not explained by it.")
    assert "unexplained[e1]" in text(made, "full")


def test_a_cause_that_events_show_comes_first(known, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Expected, "harmless", False)
    monkeypatch.setattr(Expected, "rank", 99)
    monkeypatch.setattr(Expected, "blames_events", True)
    made = diagnosed(observed(events=(SPIKE,)))
    assert [v.cause for v in made.verdicts][:2] == ["expected", "frozen-layer"]


def test_it_does_not_need_many_steps(known):
    short = observed(steps=12)
    assert diagnosed(short).answer.cause == "frozen-layer"
    assert diagnosed(replace(short, run=bare_observation(12).run)).answer.status == "cannot-say"


def test_an_identity_that_is_a_fault_stands_where_the_replay_clears_it_of_the_events(known):
    from whyspike.suspect import suspect as all_suspicions
    from whyspike.types import Trial

    seen = observed(events=(SPIKE,))
    [mine] = [s for s in all_suspicions(seen) if s.cause == "frozen-layer"]
    blamed = replace(mine, events=("e1",), alone=True)
    made = [
        Trial(
            cause="frozen-layer", arm=arm, words=arm, event="e1", pair=k, backend="snapshot", first_step=90,
            event_step=100, reported=(1.0,) * 20, state=(2.0,) * 20, reported_reference=1.0, state_reference=1.0,
            excess=1.0, reproduced=True if arm == "baseline" else None, noise=0.0 if arm == "baseline" else None,
        )
        for arm in ("baseline", "intervention", "placebo")
        for k in range(8)
    ]  # fmt: skip
    verdict = pipeline._conclude(seen, (blamed,), {"frozen-layer": made}).verdicts[0]
    assert (verdict.outcome, verdict.events, verdict.harm) == ("confirmed", (), "cosmetic")
    assert verdict.reason is not None
    assert "no event comes from it" in verdict.reason
    [other] = pipeline._conclude(seen, (replace(blamed, alone=False),), {"frozen-layer": made}).verdicts
    assert other.outcome == "refuted"
