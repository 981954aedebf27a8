"""Each formula against a slow obvious version, and p-values that do not lie under their null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.stats import (
    batch_mean_null,
    bootstrap_interval,
    holm,
    paired_permutation_p,
    poisson_upper,
    rank_p,
    ratio_interval,
    share_removed,
    wilson,
)

numbers = st.floats(-100, 100).map(lambda v: round(v, 3))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_the_exact_permutation_p_is_a_count_over_all_sign_flips(pairs):
    a, b = zip(*pairs, strict=True)
    d = [x - y for x, y in pairs]
    sums = [sum(s * v for s, v in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=len(d))]
    slow = sum(s >= sum(d) - 1e-9 for s in sums) / len(sums)
    assert paired_permutation_p(a, b) == pytest.approx(slow)


def test_pairs_of_one_event_flip_together():
    a, b = [2.0] * 8, [1.0] * 8
    assert paired_permutation_p(a, b) == 1 / 2**8
    assert paired_permutation_p(a, b, clusters=["e1"] * 4 + ["e2"] * 4) == 1 / 4


def test_the_monte_carlo_p_agrees_with_the_exact_one_and_is_never_zero():
    rng = np.random.default_rng(0)
    d = rng.normal(0.4, 1, 14)
    exact = paired_permutation_p(d, np.zeros(14))
    drawn = paired_permutation_p(np.append(d, [0.0]), np.zeros(15))  # a zero difference changes no sum
    assert drawn == pytest.approx(exact, abs=0.005)
    assert paired_permutation_p(np.ones(40), np.zeros(40)) == 1 / 100_001


@pytest.mark.parametrize("n", [5, 8, 12])
def test_the_permutation_p_is_conservative_under_its_null(n):
    rng = np.random.default_rng(n)
    ps = np.array([paired_permutation_p(rng.standard_t(2, n), rng.standard_t(2, n)) for _ in range(600)])
    for level in (0.05, 0.2, 0.5):
        assert (ps <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 600)


def test_the_clustered_p_holds_its_level_where_the_plain_one_does_not():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(8), 4)
    shared = [rng.normal(0, 1, 8)[clusters] + rng.normal(0, 0.2, 32) for _ in range(200)]
    labels = clusters.tolist()
    clustered = np.mean([paired_permutation_p(d, np.zeros(32), clusters=labels) <= 0.05 for d in shared])
    assert clustered <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_rank_p_counts_its_own_draw():
    assert rank_p(5, [1, 2, 3]) == 1 / 4
    assert rank_p(2, [1, 2, 3]) == 3 / 4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_holm_against_its_definition(ps):
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    adjusted = holm(ps)
    for rank, k in enumerate(order):
        assert adjusted[k] == pytest.approx(max(min(1.0, (len(ps) - j) * ps[order[j]]) for j in range(rank + 1)))
    assert all(a >= p for a, p in zip(adjusted, ps, strict=True))


def test_bootstrap_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    inside = 0
    for k in range(200):
        low, high = bootstrap_interval(rng.exponential(1, 40), seed=k, draws=500)
        inside += low <= 1.0 <= high
    assert 0.86 <= inside / 200 <= 0.99


def test_a_bootstrap_of_another_statistic():
    low, high = bootstrap_interval(np.arange(101.0), lambda x: float(np.median(x)))
    assert low < 50 < high
    assert high - low < 45


def test_share_removed_and_its_interval():
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert share_removed(a, 0.1 * a) == pytest.approx(0.9)
    assert ratio_interval(a, 0.1 * a) == pytest.approx((0.9, 0.9))  # pairs are resampled together
    b = 0.1 * a[::-1]
    low, high = ratio_interval(a, b)
    assert low < share_removed(a, b) < high


def test_the_share_of_a_baseline_near_zero_is_unbounded_not_wrong():
    low, high = ratio_interval([1.0, -0.9, 0.5, -0.4], [1.0, 1.0, 1.0, 1.0])
    assert low == -math.inf
    assert high == math.inf
    with pytest.raises(ValueError, match="baseline above zero"):
        ratio_interval([-1.0, -2.0], [0.0, 0.0])


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_wilson_ends_are_where_the_score_test_turns(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for p in (low, high):
        if 0 < p < 1 and not (k in (0, n) and abs(p - k / n) < 1e-12):
            assert abs(k / n - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize("k", [0, 1, 3, 10, 40, 700])
def test_poisson_upper_against_scipy(k):
    from scipy.stats import chi2

    assert poisson_upper(k, 10.0) == pytest.approx(chi2.ppf(0.95, 2 * k + 2) / 2 / 10.0, rel=2e-3)


# --------------------------------------------------------------------------- the batch-mean null


def test_an_ordinary_batch_has_a_uniform_p():
    rng = np.random.default_rng(3)
    ps = []
    for k in range(200):
        losses = rng.exponential(1, 2000)
        ps.append(batch_mean_null(losses, 8, float(rng.exponential(1, 8).mean()), draws=1000, seed=k).p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(ps) <= level) <= level + 3 * math.sqrt(level * (1 - level) / 200) + 0.02


@pytest.mark.parametrize("target", [1e-5, 1e-7])
def test_the_tail_goes_below_one_over_draws_and_keeps_the_order_of_magnitude(target):
    from scipy.stats import gamma

    rng = np.random.default_rng(4)
    n = 8
    observed = gamma.ppf(1 - target, n) / n  # the mean of 8 exponentials
    found = batch_mean_null(rng.exponential(1, 20_000), n, float(observed))
    assert found.method == "tail"
    assert found.valid
    assert abs(math.log10(found.p_value / target)) < 1.3


LAWS = {
    "exponential": lambda rng, n: rng.exponential(1, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1.5, n),
    "squared t3": lambda rng, n: rng.standard_t(3, n) ** 2,
    "power law without a mean": lambda rng, n: (rng.random(n) ** (-1 / 1.3) - 1) ** 2,
    "mislabelled": lambda rng, n: np.where(rng.random(n) < 0.02, rng.gamma(20, 0.4, n), rng.exponential(0.02, n)),
    "negative": lambda rng, n: rng.standard_t(3, n) ** 2 - 5,
}


@pytest.mark.parametrize("n", [4, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("law", LAWS)
def test_the_highest_of_many_ordinary_batches_is_ordinary(law, n):
    """The pool has a quarter of the samples that the training goes through, epoch by epoch."""
    steps, runs, wrong = 1_000, 40, 0
    for seed in range(runs):
        rng = np.random.default_rng([seed, n])
        samples = LAWS[law](rng, 2048)
        epochs = [rng.permutation(2048).reshape(-1, n) for _ in range(-(-steps * n // 2048))]
        highest = samples[np.concatenate(epochs)].mean(1)[:steps].max()
        found = batch_mean_null(samples[:512], n, float(highest), steps, draws=5_000)
        wrong += found.p_any < 0.05
    assert wrong <= 6  # 5 % are 2; 6 or more of 40 have a chance of 1.4 %


def test_one_sample_far_beyond_the_others_is_not_ordinary():
    rng = np.random.default_rng(8)
    losses = rng.exponential(1, 512)
    batch = np.append(rng.exponential(1, 31), 300.0)
    assert batch_mean_null(losses, 32, float(batch.mean()), 2_000).p_any < 0.05


def test_the_smaller_batch_is_allowed_more():
    losses = np.random.default_rng(5).lognormal(0, 1, 4000)
    single, full = (batch_mean_null(losses, n, 4.5).p_value for n in (1, 32))
    assert full < 1e-3 < single


def test_p_any_is_bonferroni_and_a_small_pool_is_said_to_be_small():
    losses = np.random.default_rng(6).exponential(1, 40)
    found = batch_mean_null(losses, 4, 2.0, 100)
    assert found.p_any == min(1.0, 100 * found.p_value)
    assert not found.valid
    assert "the pool has 40 losses" in (found.reason or "")


def test_p_does_not_grow_with_the_observed_loss():
    losses = np.random.default_rng(7).lognormal(0, 0.7, 3000)
    ps = [batch_mean_null(losses, 8, x).p_value for x in np.linspace(0.5, 8, 30)]
    assert all(b <= a for a, b in itertools.pairwise(ps))
    assert ps[-1] > 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="nan or inf"):
        paired_permutation_p([1.0, math.nan], [0.0, 0.0])
    with pytest.raises(ValueError, match="2 values and b has 1"):
        paired_permutation_p([1.0, 2.0], [0.0])
    with pytest.raises(ValueError, match="n = 0"):
        batch_mean_null([1.0, 2.0], 0, 1.0)
