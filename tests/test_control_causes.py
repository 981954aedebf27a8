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
