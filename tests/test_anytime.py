"""A p-value that holds wherever one stops: by simulation, and against the sum over all sequences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from whyspike.anytime import anytime_p


@pytest.mark.parametrize("draw", ["normal", "heavy", "ties"])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_looking_after_every_pair_keeps_the_error_rate(draw, alpha):
    rng = np.random.default_rng(0)
    runs, pairs = 4000, 60
    values = {
        "normal": lambda: rng.normal(size=(runs, pairs)),
        "heavy": lambda: rng.standard_cauchy(size=(runs, pairs)),
        "ties": lambda: rng.integers(-1, 2, size=(runs, pairs)).astype(float),
    }[draw]()
    # A p-value of the whole sequence is one over the most that was ever there, so it has seen every look.
    stopped = np.mean([anytime_p(row) <= alpha for row in values])
    assert stopped <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_a_permutation_test_that_is_looked_at_as_often_does_not():
    """What it is for: the same sequences, tested anew after every pair."""
    from whyspike.stats import paired_permutation_p

    rng = np.random.default_rng(0)
    found = 0
    for row in rng.normal(size=(300, 14)):
        found += any(paired_permutation_p(row[:k], np.zeros(k)) <= 0.05 for k in range(5, 15))
    assert found / 300 > 0.08


def test_over_all_sequences_of_signs_the_chance_is_exact():
    n = 10
    smallest = [anytime_p(signs) for signs in product((-1.0, 1.0), repeat=n)]
    for alpha in (0.2, 0.05, 0.01):
        assert np.mean(np.array(smallest) <= alpha) <= alpha


def test_what_never_fails_is_found_in_eight_pairs():
    assert anytime_p([1.0] * 7) > 0.01 > anytime_p([1.0] * 8)
    assert anytime_p([0.3, -1.0, *[2.0] * 11]) < 0.05  # one that failed
    assert anytime_p([]) == anytime_p([-1.0] * 20) == anytime_p([0.0] * 20) == 1.0
    assert anytime_p([np.inf] * 8) == anytime_p([1.0] * 8)


def test_nan_is_no_difference():
    with pytest.raises(ValueError, match="nan among the differences"):
        anytime_p([1.0, np.nan])
