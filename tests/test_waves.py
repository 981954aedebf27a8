"""A smooth wave over the epoch is one event; noise, trends and falling losses are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.detect import detect
from whyspike.folding import folded
from whyspike.periods import occurrences, periodic_events
from whyspike.types import Run, Series
from whyspike.waves import wave


def run_of(log_loss: np.ndarray, size: int, *, columns: bool = True, first_step: int = 0, stride: int = 1) -> Run:
    t = np.arange(len(log_loss)) * stride
    return Run(
        source="test", reader="test", step=t + first_step, loss=np.exp(log_loss), steps_per_epoch=size,
        epoch=t // size if columns else None, index=t % size if columns else None,
    )  # fmt: skip


def noise(n: int, rho: float = 0.0, seed: int = 0) -> np.ndarray:
    """AR(1) noise of standard deviation 1."""
    rng = np.random.default_rng(seed)
    e = rng.standard_normal(n + 500) * np.sqrt(1 - rho**2)
    for i in range(1, len(e)):
        e[i] += rho * e[i - 1]
    return e[500:]


def saw(size: int, epochs: int) -> np.ndarray:
    return np.arange(size * epochs) % size / size - 0.5


def falling(n: int) -> np.ndarray:
    return np.log(0.1 + 2 / np.sqrt(1 + np.arange(n) / 20))


# --------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("height", [0.4, -0.4])
def test_a_sawtooth_is_one_event_that_spans_whole_epochs(height, columns):
    size, epochs = 50, 20
    run = run_of(
        falling(size * epochs) + height * saw(size, epochs) + 0.1 * noise(size * epochs), size, columns=columns
    )
    (event,) = periodic_events(run, detect(run))
    assert (event.id, event.kind, event.period) == ("e1", "periodic", size)
    assert (event.step, event.last_step) == (size, size * epochs - 1)  # the first epoch is left out
    assert event.reported == pytest.approx(np.exp(0.4 * 7 / 8), rel=0.1)
    assert event.is_wave
    assert occurrences(run, event).tolist() == list(range(size, size * epochs, size))


def test_a_staircase_is_a_wave():
    size, epochs = 40, 12
    stairs = -0.3 * (np.arange(size * epochs) // size)
    run = run_of(stairs + 0.05 * noise(size * epochs), size)
    (event,) = periodic_events(run, ())
    assert event.is_wave
    assert event.reported == pytest.approx(np.exp(0.3 * 7 / 8), rel=0.1)


def test_the_probe_says_whether_the_network_moves():
    size, epochs = 50, 20
    run = run_of(0.4 * saw(size, epochs) + 0.1 * noise(size * epochs), size)
    at = np.arange(0, len(run), 3)
    flat = Series(at, np.exp(0.01 * noise(len(at), seed=1)))
    moving = Series(at, np.exp(0.3 * saw(size, epochs)[at] + 0.01 * noise(len(at), seed=1)))
    (event,) = periodic_events(replace(run, signals={"probe": flat}), ())
    assert event.state == pytest.approx(1.0, abs=0.02)
    (event,) = periodic_events(replace(run, signals={"probe": moving}), ())
    assert event.state == pytest.approx(np.exp(0.3 * 7 / 8), rel=0.05)


def test_four_values_an_epoch_are_enough():
    """The third question's log: metrics at a quarter, half, three quarters and the whole of each epoch."""
    quarters = np.tile([-0.22, -0.045, 0.085, 0.176], 30) + 0.05 * noise(120)
    run = run_of(quarters, 1000, columns=False, stride=250)
    (event,) = periodic_events(run, ())
    assert event.period == 1000
    assert event.reported == pytest.approx(np.exp(0.396), rel=0.1)
    assert folded(run, 4).profile == pytest.approx([-0.22, -0.045, 0.085, 0.176], abs=0.04)


def test_a_spike_on_top_of_nothing_is_no_wave_and_a_sawtooth_is_no_spike():
    size, epochs = 33, 20
    y = 0.2 * noise(size * epochs)
    y[size - 1 :: size] += 1.5
    (event,) = periodic_events(run_of(y, size), ())
    assert not event.is_wave
    assert event.step == size - 1
    (event,) = periodic_events(run_of(0.2 * noise(size * epochs) + 1.0 * saw(size, epochs), size), ())
    assert event.is_wave


def test_an_event_in_the_middle_of_a_wave_stays():
    size, epochs = 50, 20
    y = 0.4 * saw(size, epochs) + 0.1 * noise(size * epochs)
    y[510:513] += 3.0
    run = run_of(y, size)
    assert [e.kind for e in periodic_events(run, detect(run))] == ["periodic", "spike"]


# --------------------------------------------------------------------------- folding


def test_folded_against_a_loop():
    size, epochs = 20, 6
    y = 0.5 * saw(size, epochs) - 0.01 * np.arange(size * epochs)
    table = folded(run_of(y, size), 4).table
    means = y.reshape(epochs, size).mean(axis=1)
    for e in range(2, epochs - 2):
        slope = np.median([means[k + 1] - means[k] for k in range(e - 2, e + 2)])
        rest = [y[e * size + i] - means[e] - slope * (i - (size - 1) / 2) / size for i in range(size)]
        assert table[e] == pytest.approx([np.mean(rest[q * 5 : q * 5 + 5]) for q in range(4)])


def test_a_signal_without_a_logarithm_is_folded_in_its_own_unit():
    size, epochs = 40, 8
    run = run_of(np.zeros(size * epochs), size)
    signal = Series(np.arange(0, size * epochs, 10), np.tile([-0.01, 0.0, 0.0, 0.02], epochs))
    made = folded(run, 4, signal)
    assert not made.logarithmic
    assert made.profile == pytest.approx([-0.0125, -0.0025, -0.0025, 0.0175], abs=0.001)
    assert made.amplitude == pytest.approx(0.03, abs=0.002)


def test_an_epoch_that_was_cut_short_is_left_out():
    size = 30
    run = run_of(0.4 * saw(size, 9)[:-20], size)
    assert len(folded(run, 5).table) == 8


def test_no_epoch_is_said():
    run = replace(run_of(np.zeros(100), 10), steps_per_epoch=None, index=None)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        folded(run, 4)
    assert "no period" in (wave(run).reason or "")
    assert "at least 4" in (wave(run_of(np.zeros(30), 10)).reason or "")


# --------------------------------------------------------------------------- no imagination


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("size", "epochs"), [(16, 5), (33, 12), (100, 30)])
@pytest.mark.parametrize("trend", [0.0, 1.0])
def test_noise_and_falling_losses_have_no_wave(rho, size, epochs, trend):
    n = size * epochs
    ps = [wave(run_of(0.2 * noise(n, rho, s) + trend * falling(n), size)).p_value for s in range(120)]
    assert np.mean(np.array(ps) <= 0.01) <= 0.01 + 4 * np.sqrt(0.01 * 0.99 / 120)  # of 24 such tests none may fail
    assert min(ps) > 1e-4


@given(
    st.integers(8, 64), st.integers(8, 40), st.sampled_from(["power", "exponential", "hill", "steps"]),
    st.floats(0.1, 1.5), st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_loss_that_falls_without_noise_is_no_wave(size, epochs, kind, speed, seed):
    t = np.arange(size * epochs) / size
    log_loss = {
        "power": -speed * np.log(0.5 + t),
        "exponential": -speed * t / 4,
        "hill": -3 * speed / (1 + np.exp(-(t - epochs / 2))),
        "steps": -speed * ((t > epochs / 3).astype(float) + (t > 2 * epochs / 3)),
    }[kind]
    rng = np.random.default_rng(seed)
    run = run_of(log_loss + 1e-4 * rng.standard_normal(len(t)), size)
    assert not any(e.is_wave for e in periodic_events(run, ()))


def test_what_could_have_been_found_is_said():
    """A sawtooth as high as the minimum detectable amplitude is found in about half of the runs."""
    size, epochs = 33, 20
    limit = np.median([wave(run_of(0.2 * noise(size * epochs, 0, s), size)).minimum_detectable for s in range(5)])
    found = [
        wave(run_of(0.2 * noise(size * epochs, 0, s) + limit * saw(size, epochs), size)).p_value <= 0.001
        for s in range(40)
    ]
    assert 0.25 <= np.mean(found) <= 0.75


def test_a_last_batch_of_one_sample_is_no_wave():
    """Its loss is unbiased, and far lower in the median: the logarithm of a mean of few skewed values."""
    rng = np.random.default_rng(3)
    epochs, size, batch = 180, 12, 64
    samples = np.where(np.arange(epochs * size) % size == size - 1, 1, batch)
    loss = np.array([rng.exponential(0.5, n).mean() for n in samples])
    run = replace(run_of(np.log(loss), size), n_samples=samples.astype(np.int64), batch_size=batch)
    assert wave(run).p_value > 0.01
    assert wave(replace(run, n_samples=None)).p_value < 0.01
