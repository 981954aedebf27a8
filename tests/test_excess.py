"""What an event costs, against sums written out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whyspike.excess import CAP, area_above, excess, log_rise


def test_state_excess_is_the_area_above_the_level_from_the_event_on() -> None:
    state = [1.0, 1.0, math.e, math.e**2, 1.0, 0.5]
    got = excess("state", reported=state, state=state, onset=2, length=1, reported_reference=1.0, state_reference=1.0)
    assert got == pytest.approx(3.0)  # 1 + 2, and nothing for what lies below


def test_reported_excess_looks_at_the_events_own_steps_only() -> None:
    reported = [1.0, 1.0, math.e**2, math.e, 5.0]
    got = excess(
        "reported", reported=reported, state=[1.0] * 5, onset=2, length=1, reported_reference=1.0, state_reference=1.0
    )
    assert got == pytest.approx(2.0)


def test_growth_is_measured_from_the_first_point() -> None:
    state = [1.0, math.e, math.e**2, math.e, 1.0]
    got = excess("growth", reported=state, state=state, onset=1, length=1, reported_reference=1.0, state_reference=1.0)
    assert got == pytest.approx(1.0)


def test_dip_is_the_area_below() -> None:
    got = excess(
        "dip",
        reported=[1.0, math.exp(-2.0)],
        state=[1.0, 1.0],
        onset=1,
        length=1,
        reported_reference=1.0,
        state_reference=1.0,
    )
    assert got == pytest.approx(2.0)


@pytest.mark.parametrize(("direction", "expected"), [(1.0, 2.0), (-1.0, -2.0)])
def test_onset_counts_the_first_step_of_an_episode_alone(direction: float, expected: float) -> None:
    reported = [1.0, 1.0, math.exp(2.0), 0.1, 0.1, math.exp(2.0), 0.1]
    got = excess(
        "onset",
        reported=reported,
        state=[1.0] * 7,
        onset=2,
        length=5,
        reported_reference=1.0,
        state_reference=1.0,
        direction=direction,
    )
    assert got == pytest.approx(expected)


def test_height_and_deviation_count_what_is_on_the_other_side_against_it() -> None:
    reported = [1.0, math.e**2, math.exp(-0.5), 9.0]
    for measure, direction, expected in (("height", 1.0, 1.5), ("deviation", -1.0, -1.5)):
        got = excess(
            measure,  # type: ignore[arg-type]
            reported=reported,
            state=[1.0] * 4,
            onset=1,
            length=2,
            reported_reference=1.0,
            state_reference=1.0,
            direction=direction,
        )
        assert got == pytest.approx(expected)


def test_a_skipped_step_counts_nothing_and_an_overflow_counts_the_cap() -> None:
    assert area_above([math.nan, 1.0], 1.0) == 0.0
    assert log_rise(math.inf, 1.0) == CAP


def test_negative_losses_are_compared_without_a_logarithm() -> None:
    assert log_rise(-1.0, -2.0) == pytest.approx(0.5)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_excess_does_not_depend_on_the_unit_of_the_loss(values: list[float], unit: float) -> None:
    assert area_above([v * unit for v in values], unit) == pytest.approx(area_above(values, 1.0), abs=1e-6)
