"""The causes of a plotted number: each speaks where its formula holds, and is silent where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whyspike.case import find_case
from whyspike.cause import Observation, find
from whyspike.detect import detect
from whyspike.periods import periodic_events
from whyspike.pipeline import take
from whyspike.plotted import identify
from whyspike.terms import parts_of, terms
from whyspike.types import Event, Run, Series

SIZE, EPOCHS = 40, 30


def run_of(loss: np.ndarray, size: int = SIZE, *, stride: int = 1, **columns) -> Run:
    step = np.arange(len(loss)) * stride
    return Run(
        source="test", reader="test", step=step, loss=loss, epoch=step // size, index=step % size, steps_per_epoch=size,
        **columns,
    )  # fmt: skip


def observed(run: Run) -> Observation:
    return Observation(run=run, events=periodic_events(run, detect(run)))


def losses(n: int = SIZE * EPOCHS, seed: int = 0, noise: float = 0.15) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 + 2 * np.exp(-np.arange(n) / 400)) * np.exp(noise * rng.standard_normal(n))


def means(loss: np.ndarray, size: int = SIZE) -> np.ndarray:
    return np.concatenate(
        [np.cumsum(e) / np.arange(1, len(e) + 1) for e in np.split(loss, range(size, len(loss), size))]
    )


# --------------------------------------------------------------------------- running-mean-reset


@pytest.mark.parametrize("digits", [4, 8])
def test_a_running_mean_is_known_by_its_curve_alone(digits):
    seen = observed(run_of(means(losses()).round(digits)))
    assert any(e.is_wave for e in seen.events)
    made = find("running-mean-reset").signature(seen)
    assert made is not None
    assert made.outcome == "likely"
    assert made.identity


def test_too_few_decimals_are_said():
    made = find("running-mean-reset").signature(observed(run_of(means(losses()).round(2))))
    assert made is None or made.outcome == "untested"


def test_a_sawtooth_of_the_losses_themselves_is_none():
    saw = np.exp(0.4 * (np.arange(SIZE * EPOCHS) % SIZE / SIZE))
    assert find("running-mean-reset").signature(observed(run_of(losses() * saw))) is None


def test_a_running_mean_over_losses_that_jump_as_well_is_ruled_out():
    saw = np.exp(0.8 * (np.arange(SIZE * EPOCHS) % SIZE / SIZE))
    made = find("running-mean-reset").signature(observed(run_of(means(losses(noise=0.05) * saw))))
    assert made is not None
    assert made.outcome == "refuted"


# --------------------------------------------------------------------------- logging-alias


def spiky(size: int, every: int, epochs: int = 120) -> Run:
    loss = losses(size * epochs)
    loss[size - 1 :: size] *= 8.0
    return run_of(loss[::every], size, stride=every)


def test_a_log_of_every_tenth_step_meets_the_last_one_of_33_every_330():
    seen = observed(spiky(33, 10))
    made = find("logging-alias").signature(seen)
    assert made is not None
    assert made.identity
    assert "330" in find("logging-alias").sentence(seen, seen.events)


@pytest.mark.parametrize(("size", "every"), [(30, 10), (33, 1)])
def test_where_the_log_meets_every_epoch_alike_it_is_silent(size, every):
    assert find("logging-alias").signature(observed(spiky(size, every))) is None


def test_spikes_at_any_place_of_the_epoch_are_no_alias():
    loss = losses(33 * 120)[::10]
    loss[np.random.default_rng(0).choice(np.arange(64, len(loss)), 8, replace=False)] *= 8.0
    assert find("logging-alias").signature(observed(run_of(loss, 33, stride=10))) is None


def test_the_record_of_every_step_beside_the_plot():
    loss = losses(33 * 120)
    loss[32::33] *= 8.0
    run = run_of(loss, 33)
    at = np.arange(0, len(run), 10)
    seen = observed(replace(run, signals={"train_loss": Series(at, loss[at])}))
    made = find("logging-alias").signature(seen)
    assert made is not None
    assert made.events == ()
    assert made.identity
    assert any("one in 10" in e.expected for e in made.evidence)


# --------------------------------------------------------------------------- mixed-loss-terms


def vae(weight: np.ndarray, seed: int = 0, logs: tuple[str, ...] = ("reconstruction", "kl", "beta")) -> Run:
    rng = np.random.default_rng(seed)
    n = len(weight)
    t = np.arange(n)
    parts = {
        "reconstruction": 20 + 5 / np.sqrt(1 + t / 50) + 0.4 * rng.standard_normal(n),
        "kl": 6 + 0.2 * rng.standard_normal(n),
        "beta": weight,
    }
    total = (parts["reconstruction"] + weight * parts["kl"]).astype(np.float32).astype(np.float64)
    return run_of(total, 25, signals={name: Series(t, parts[name]) for name in logs})


CYCLES = np.minimum(1.0, np.arange(1400) % 140 / 70)


def test_the_terms_of_a_total_are_found():
    made = terms(vae(CYCLES))
    assert made is not None
    assert made.words == "reconstruction + beta x kl"
    assert made.residual <= made.tolerance


def test_a_total_with_a_constant_factor():
    rng = np.random.default_rng(0)
    a, b = 1 + rng.random(300), rng.random(300)
    run = run_of(a + 0.1 * b, 25, signals={"main": Series(np.arange(300), a), "aux": Series(np.arange(300), b)})
    made = terms(run)
    assert made is not None
    assert made.words == "main + 0.1 x aux"


def test_numbers_that_do_not_add_up_are_no_terms():
    assert terms(vae(CYCLES, logs=("reconstruction", "kl"))) is None
    assert terms(vae(CYCLES, logs=("kl", "beta"))) is None
    run = vae(CYCLES)
    assert terms(replace(run, signals={"train_loss": Series(run.step, run.loss), **run.signals})) is not None
    assert terms(replace(run, signals={"train_loss": Series(run.step, run.loss)})) is None


def test_the_weight_makes_the_wave():
    seen = observed(vae(CYCLES))
    (event,) = seen.events
    assert (event.is_wave, event.period) == (True, 140)
    made = find("mixed-loss-terms").signature(seen)
    assert made is not None
    assert made.events == (event.id,)
    assert made.identity


def test_a_spike_of_another_term_is_not_the_weights():
    run = vae(CYCLES)
    spike = 1 + 2.0 * (np.arange(len(run)) == 900)
    moved = run.signals["reconstruction"].value * spike
    loss = run.loss + moved - run.signals["reconstruction"].value
    seen = observed(replace(run, loss=loss, signals={**run.signals, "reconstruction": Series(run.step, moved)}))
    assert {e.kind for e in seen.events} == {"spike", "periodic"}
    made = find("mixed-loss-terms").signature(seen)
    assert made is not None
    assert made.events == tuple(e.id for e in seen.events if e.is_wave)


def test_the_shares_of_an_event_add_up_to_one():
    run = vae(CYCLES)
    made = terms(run)
    assert made is not None
    wave = Event(id="e1", kind="periodic", step=140, last_step=1399, period=140)
    single = Event(id="e2", kind="level-shift", step=280, last_step=300)
    for event in (wave, single):
        assert sum(parts_of(made, made.terms[1], event).values()) == pytest.approx(1.0, abs=1e-6)


# --------------------------------------------------------------------------- losses that are not finite


@pytest.mark.parametrize("hidden", [True, False])
def test_a_running_mean_that_shows_what_is_not_finite_has_left_nothing_out(hidden):
    loss = losses(noise=0.3)
    loss[150:160] = np.nan
    run, kept = run_of(loss), np.isfinite(loss)
    by_epoch = np.split(np.arange(len(loss)), range(SIZE, len(loss), SIZE))
    logged = np.concatenate([np.cumsum(np.where(kept, loss, 0)[k]) / np.cumsum(kept[k]) for k in by_epoch])
    if not hidden:
        logged = np.concatenate([np.cumsum(loss[k]) / np.arange(1, len(k) + 1) for k in by_epoch])
    found = identify(run, Series(step=run.step, value=logged))
    assert found is not None
    assert (found.form, found.treatment) == ("running-mean", "dropped" if hidden else "")


# --------------------------------------------------------------------------- trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["running-mean-reset", "metric-unweighted-mean", "nan-filtered-log"])
def test_the_identity_is_confirmed_in_a_real_training(name):
    made = take(find_case(name).sick, seed=0, verify_cures=False)
    assert (made.answer.cause, made.verdicts[0].outcome) == (name, "confirmed")
    assert made.verdicts[0].evidence
