"""The common pattern of a run's epochs, and its share in one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whyspike.excess import pattern_excess
from whyspike.pattern import logged, pattern, quarters, trend_over
from whyspike.types import Run


def run_of(loss: np.ndarray, period: int) -> Run:
    step = np.arange(len(loss))
    return Run(
        source="a test", reader="test", step=step, loss=loss, epoch=step // period, index=step % period,
        steps_per_epoch=period, batch_size=32,
    )  # fmt: skip


def sawtooth(epochs: int, period: int, amplitude: float, noise: float = 0.0, slope: float = 0.0, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    wave = amplitude * (np.arange(period) / (period - 1) - 0.5)
    y = np.tile(wave, epochs) + slope * np.arange(epochs * period) / period + rng.normal(0, noise, epochs * period)
    return run_of(np.exp(y), period)


@given(st.integers(5, 60), st.floats(0.05, 1.0), st.floats(-0.3, 0.3))
def test_without_noise_the_pattern_is_what_was_put_in_whatever_the_trend(
    period: int, amplitude: float, slope: float
) -> None:
    found = pattern(sawtooth(8, period, amplitude, slope=slope))
    assert found is not None
    # a trend within one epoch is not told from the pattern's own rise: the pattern returns to its begin
    assert found.amplitude == pytest.approx(amplitude, rel=0.02)
    own = np.exp(amplitude * (np.arange(period) / (period - 1) - 0.5))
    assert found.share_in(own) == pytest.approx(1.0, abs=0.02)


def test_noise_does_not_make_a_pattern_larger_than_it_is() -> None:
    found = [pattern(sawtooth(12, 100, 0.3, noise=0.1, seed=s)) for s in range(5)]
    assert np.mean([p.amplitude for p in found if p is not None]) == pytest.approx(0.3, abs=0.06)


def test_a_single_high_step_is_not_smoothed_away() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(0, 0.05, (12, 90))
    y[:, 40] += 1.0
    found = pattern(run_of(np.exp(y.ravel()), 90))
    assert found is not None
    assert int(found.shape.argmax()) == 40
    assert found.amplitude == pytest.approx(1.0, abs=0.15)


def test_the_share_is_linear_and_can_be_upside_down() -> None:
    found = pattern(sawtooth(8, 40, 0.4))
    assert found is not None
    wave = np.arange(40) / 39 - 0.5
    for factor in (-1.0, 0.0, 0.5, 2.0):
        assert found.share_in(np.exp(0.4 * factor * wave)) == pytest.approx(factor, abs=0.02)
        assert found.amplitude_in(np.exp(0.4 * factor * wave)) == pytest.approx(0.4 * factor, abs=0.01)


def test_drift_of_the_network_is_taken_off() -> None:
    found = pattern(sawtooth(8, 40, 0.4))
    assert found is not None
    flat = np.exp(0.4 * (np.arange(40) + 0.5) / 40)  # nothing but a drift of .4
    assert found.share_in(flat, drift=0.4) == pytest.approx(0.0, abs=1e-9)
    assert pattern_excess(found, reported=flat.tolist(), drift=0.4) == pytest.approx(0.0, abs=1e-9)


def test_hard_samples_that_come_late_by_chance_are_no_pattern() -> None:
    found = pattern(sawtooth(8, 40, 0.4))
    assert found is not None
    rng = np.random.default_rng(0)
    wave = np.arange(40) / 39 - 0.5
    cost = 0.5 * wave + rng.normal(0, 0.2, 40)  # of the batches, in nats
    for factor in (0.0, 1.0):
        seen = np.exp(0.4 * factor * wave + 0.8 * cost)
        assert found.share_in(seen) > factor + 0.5
        assert found.share_in(seen, beside=3 * np.exp(cost)) == pytest.approx(factor, abs=0.02)
    own = np.exp(0.4 * wave)
    assert found.share_in(own, beside=np.ones(40)) == pytest.approx(found.share_in(own))  # nothing to take off
    assert found.share_in(own, beside=np.full(40, np.nan)) == pytest.approx(found.share_in(own))


def test_the_trend_over_an_epoch_is_that_of_the_run() -> None:
    run = sawtooth(8, 40, 0.4, slope=-0.2)
    assert trend_over(run, 4) == pytest.approx(-0.2, abs=1e-9)
    assert trend_over(run, 7) == pytest.approx(-0.2, abs=1e-9)
    assert np.isnan(trend_over(run, 11))
    assert np.isnan(trend_over(sawtooth(2, 40, 0.4), 1))


def test_quarters_of_a_sawtooth() -> None:
    found = quarters(sawtooth(8, 40, 0.4))
    assert found is not None
    wave = 0.4 * (np.arange(40) / 39 - 0.5)
    assert found == pytest.approx([q.mean() for q in np.split(wave, 4)], abs=1e-9)
    assert quarters(sawtooth(3, 40, 0.4)) is None


def test_the_measured_epoch_is_left_out() -> None:
    run = sawtooth(8, 40, 0.4)
    run.loss[5 * 40 : 6 * 40] *= np.linspace(1, 9, 40)
    without, with_it = pattern(run, without=[5]), pattern(run)
    assert without is not None
    assert with_it is not None
    # its neighbours' trend still saw it
    assert abs(without.amplitude - 0.4) < abs(with_it.amplitude - 0.4)


def test_skipped_steps_shorter_epochs_and_negative_losses() -> None:
    found = pattern(sawtooth(8, 40, 0.4))
    assert found is not None
    own = np.exp(0.4 * (np.arange(40) / 39 - 0.5))
    own[7] = np.nan
    assert found.share_in(own) == pytest.approx(1.0, abs=0.03)
    assert found.share_in(np.exp(0.4 * (np.arange(30) / 29 - 0.5))) == pytest.approx(1.0, abs=0.05)
    assert logged(np.array([-2.0, 1.0, np.nan])).tolist()[:2] == pytest.approx([-2 / 1.5, 1 / 1.5])


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_too_few_epochs_have_no_pattern(epochs: int) -> None:
    assert pattern(sawtooth(epochs, 40, 0.4)) is None
