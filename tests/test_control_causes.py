"""Causes at the boundary between two steps: what each says of the marks of a record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from whyspike.cause import Observation, find
from whyspike.types import Event, Mark, Run

EPOCH = 50


def observed(*marks: Mark, events: tuple[Event, ...] = (), steps: int = 500, **facts: Any) -> Observation:
    """A flat noisy loss with these marks."""
    loss = np.exp(0.05 * np.random.default_rng(0).standard_normal(steps))
    run = Run(
        source="made by hand",
        reader="test",
        step=np.arange(steps),
        loss=loss,
        epoch=np.arange(steps) // EPOCH,
        index=np.arange(steps) % EPOCH,
        n_samples=np.full(steps, 32),
        steps_per_epoch=EPOCH,
        batch_size=32,
        facts=facts,
        marks=marks,
    )
    return Observation(run=run, events=events)


def spike(step: int, name: str = "e1", *, height: float = 3.0, period: int | None = None) -> Event:
    kind, last = ("periodic", 499) if period else ("spike", step + 1)
    return Event(id=name, kind=kind, step=step, last_step=last, period=period, reported=height)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- eval-side-effects


def evaluation(step: int, *changed: str, **more: Any) -> Mark:
    return Mark(step, "evaluation", {"seconds": 0.1, "changed": list(changed), **more})


def left_on(step: int, *, training: bool = False) -> dict[str, Any]:
    return {"left_in_eval": 7, "put_back": 0, "modules": 7, "training": training}


CAUSE = find("eval-side-effects")


@pytest.mark.parametrize("changed", [(), ("rng",), ("buffers",), ("rng", "buffers")])
def test_generators_and_counters_that_an_evaluation_moves_are_no_fault(changed):
    assert CAUSE.signature(observed(evaluation(50, *changed), events=(spike(50),))) is None


def test_weights_that_an_evaluation_leaves_are_proof_without_an_event():
    made = CAUSE.signature(observed(evaluation(50, "weights", "rng"), evaluation(100)))
    assert made is not None
    assert (made.outcome, made.identity, made.events) == ("likely", True, ())
    assert (made.evidence[0].observed, made.evidence[0].expected) == ("1 of 2", "0 of 2")


def test_batch_statistics_that_learn_in_an_evaluation_are_a_fault():
    made = CAUSE.signature(observed(evaluation(50, "buffers", statistics=True)))
    assert made is not None
    assert "batch statistics learned" in made.evidence[0].statement


def test_a_model_in_eval_mode_is_a_fault_and_a_frozen_layer_is_none():
    whole = CAUSE.signature(observed(evaluation(50, "modes", **left_on(50))))
    layer = CAUSE.signature(observed(evaluation(50, "modes", **left_on(50, training=True))))
    assert whole is not None
    assert layer is None
    assert any(e.observed == "450 of 500 (90 %)" for e in whole.evidence)


def test_events_right_after_the_evaluations_are_explained_and_others_are_not():
    marks = [evaluation(s, "weights") for s in range(50, 500, 50)]
    at, before = spike(50, period=50), spike(30, "e2", period=50)
    made = CAUSE.signature(observed(*marks, events=(at, before)))
    assert made is not None
    assert made.events == ("e1",)
    assert list(CAUSE.moments(observed(*marks), (at,)) or ()) == list(range(50, 500, 50))


def test_where_the_mode_changes_a_dip_lies_in_eval_mode_and_a_spike_outside_it():
    back = {"left_in_eval": 0, "put_back": 7, "modules": 7, "training": True}
    marks = [m for s in range(25, 500, 50) for m in (evaluation(s, "modes", **left_on(s)), Mark(s + 25, "modes", back))]
    dip, high = spike(30, period=50, height=0.5), spike(60, "e2", period=50)
    wrong = spike(40, "e3", period=50)
    made = CAUSE.signature(observed(*marks, events=(dip, high, wrong)))
    assert made is not None
    assert made.events == ("e1", "e2")


def test_weights_that_are_changed_by_hand_between_epochs_need_an_event():
    changed = Mark(100, "boundary", {"changed": ["weights"]})
    assert CAUSE.signature(observed(changed)) is None
    made = CAUSE.signature(observed(changed, events=(spike(101),)))
    assert made is not None
    assert not made.identity


# --------------------------------------------------------------------------- resume-without-state

ADAM = {"name": "Adam", "defaults": {"lr": 1e-3, "betas": (0.9, 0.999)}}
MOMENTUM = {"name": "SGD", "defaults": {"lr": 0.1, "momentum": 0.9}}


def loaded(step: int, state: tuple[int, int], updates: tuple[float | None, float | None]) -> Mark:
    return Mark(step, "loaded", {"what": "optimizer", "state": list(state), "updates": list(updates)})


RESUME = find("resume-without-state")


@pytest.mark.parametrize(
    ("mark", "sick"),
    [
        (loaded(200, (6, 0), (200.0, None)), True),
        (loaded(200, (6, 6), (200.0, 3.0)), True),
        (loaded(200, (6, 6), (200.0, 200.0)), False),
        (loaded(0, (0, 6), (None, 900.0)), False),
        (Mark(200, "optimizer-state", {"lost": True}), True),
        (Mark(200, "loaded", {"what": "model", "tensors": 6}), False),
    ],
)
def test_only_a_state_that_was_there_can_be_lost(mark: Mark, sick: bool):
    made = RESUME.signature(observed(mark, events=(spike(203),), optimizer=ADAM))
    assert (made is not None) == sick


def test_a_lost_state_without_an_event_is_not_spoken_of():
    mark = loaded(200, (6, 0), (200.0, None))
    assert RESUME.signature(observed(mark, optimizer=ADAM)) is None
    assert RESUME.signature(observed(mark, events=(spike(150),), optimizer=ADAM)) is None


def test_the_memory_of_the_optimizer_says_how_far_an_event_may_be():
    mark = Mark(200, "optimizer-state", {"lost": True})
    far = spike(300)
    assert RESUME.signature(observed(mark, events=(far,), optimizer=ADAM)) is not None
    assert RESUME.signature(observed(mark, events=(far,), optimizer=MOMENTUM)) is None
    assert RESUME.signature(observed(mark, events=(spike(201),), optimizer=MOMENTUM)) is not None
    plain = {"name": "SGD", "defaults": {"lr": 0.1, "momentum": 0.0}}
    assert RESUME.signature(observed(mark, events=(spike(201),), optimizer=plain)) is None


def test_events_right_after_the_resumes_beat_chance():
    marks = [loaded(s, (6, 0), (float(s), None)) for s in (100, 200, 300, 400)]
    events = tuple(spike(s + 2, f"e{s}") for s in (100, 200, 300, 400))
    made = RESUME.signature(observed(*marks, events=events, optimizer=ADAM))
    assert made is not None
    near = made.evidence[-1]
    assert (near.observed, near.expected) == ("4 of 4", "0.4 by chance")
    assert near.p_value == pytest.approx(1e-4)
    assert made.evidence[1].expected == "100, 200, 300, 400"
    assert "each of 4 resumes" in RESUME.sentence(observed(*marks, optimizer=ADAM), events)


# --------------------------------------------------------------------------- target-update

TARGET = find("target-update")


def copied(*steps: int, every_step: bool = False) -> list[Mark]:
    more = {"every_step": True} if every_step else {}
    return [Mark(s, "target", {"tensors": 2, "copied": 2, **more}) for s in steps]


def test_a_sawtooth_with_the_period_of_the_updates_is_theirs():
    marks = copied(*range(50, 500, 50))
    seen = observed(*marks, events=(spike(50, period=50), spike(130, "e2")))
    made = TARGET.signature(seen)
    assert made is not None
    assert made.events == ("e1",)
    assert made.evidence[0].observed.startswith("50 (50 to 50), 9 updates")
    assert "every 50 steps" in TARGET.sentence(seen, seen.events[:1])
    assert list(TARGET.moments(seen, ()) or ()) == list(range(50, 500, 50))


@pytest.mark.parametrize(
    "marks",
    [copied(100, 200), copied(10, 11, 12, every_step=True), []],
    ids=["two updates", "a moving average", "no target"],
)
def test_without_updates_now_and_then_there_is_no_suspicion(marks: list[Mark]):
    assert TARGET.signature(observed(*marks, events=(spike(100, period=50),))) is None


def test_dips_and_events_far_from_an_update_are_not_theirs():
    marks = copied(*range(50, 500, 50))
    assert TARGET.signature(observed(*marks, events=(spike(50, period=50, height=0.5),))) is None
    assert TARGET.signature(observed(*marks, events=(spike(75, period=50),))) is None
