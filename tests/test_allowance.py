"""A proof keeps to its time: what decides comes first, and what is left out is said."""

from __future__ import annotations

import math

from whyspike.allowance import FREE_S, SHARE, Allowance


def test_a_quarter_of_the_training_and_half_a_minute_in_any_case() -> None:
    assert Allowance(400.0).whole == SHARE * 400.0
    assert Allowance(10.0).whole == FREE_S
    assert Allowance(math.inf).whole == math.inf


def test_of_many_events_no_more_than_the_training() -> None:
    assert Allowance(400.0, events=2).whole == 200.0
    assert Allowance(400.0, events=50).whole == 400.0
    assert Allowance(400.0, events=0).whole == 100.0


def test_pairs_share_what_is_left_between_the_causes_that_wait() -> None:
    allowance = Allowance(10.0)
    allowance.whole = allowance.spent + 12.05
    assert allowance.pairs(12, 3, 0.1, waiting=0) == 12
    assert allowance.pairs(12, 3, 1.0, waiting=0) == 4
    assert allowance.pairs(12, 3, 1.0, waiting=1) == 2
    assert allowance.pairs(12, 3, 10.0, waiting=0) == 0
    assert Allowance(math.inf).pairs(12, 3, 1e9, waiting=5) == 12


def test_a_replay_that_was_never_timed_takes_what_it_wants() -> None:
    assert Allowance(10.0).pairs(7, 3, 0.0, waiting=3) == 7
