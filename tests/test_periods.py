"""What repeats every epoch is found, named once, and not imagined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.detect import detect
from whyspike.folding import fold
from whyspike.periods import named_period, occurrences, periodic_events
from whyspike.types import Run, Series


def epochs(
    *, size: int = 33, n_epochs: int = 12, factor: float = 1.0, last: int = 2, noise: float = 0.2, seed: int = 0,
    phase: int = -1, columns: bool = True, first_step: int = 0,
) -> Run:  # fmt: skip
    """A falling loss whose step at `phase` of every epoch is multiplied; the last batch has `last` samples."""
    rng = np.random.default_rng(seed)
    t = np.arange(size * n_epochs)
    index = t % size
    n = np.where(index == size - 1, last, 32)
    spread = noise * np.sqrt(32 / n)
    loss = (0.5 + 1 / np.sqrt(1 + t / 100)) * np.exp(spread * rng.standard_normal(len(t)) - spread**2 / 2)
    loss[index == phase % size] *= factor
    return Run(
        source="test", reader="test", step=t + first_step, loss=loss, n_samples=n, batch_size=32, steps_per_epoch=size,
        epoch=t // size if columns else None, index=index if columns else None,
    )  # fmt: skip


def test_fold_against_a_loop():
    x = np.arange(23.0)
    assert fold(x, 5).tolist() == [[x[5 * c + k] for k in range(5)] for c in range(4)]
    assert fold(x, 4, 2).tolist() == [[x[4 * c : 4 * c + 2].mean(), x[4 * c + 2 : 4 * c + 4].mean()] for c in range(5)]
    with pytest.raises(ValueError, match="n_phases"):
        fold(x, 4, 5)


@pytest.mark.parametrize(("factor", "kind"), [(16.0, "spike"), (4.0, "spike"), (1 / 16, "dip")])
@pytest.mark.parametrize("columns", [True, False])
def test_the_last_batch_of_every_epoch_is_one_event(factor, kind, columns):
    run = epochs(factor=factor, columns=columns)
    result = named_period(run)
    assert (result.period, result.phase, result.n_cycles) == (33, 32, 12)
    assert result.p_value <= 0.01
    assert result.amplitude == pytest.approx(np.log(factor), abs=0.7)
    (event,) = periodic_events(run, detect(run))
    assert (event.id, event.kind, event.period) == ("e1", "periodic", 33)
    assert (event.step, event.last_step) == (32, 33 * 12 - 1)
    assert event.reported == pytest.approx(factor, rel=0.6)
    assert occurrences(run, event).tolist() == list(range(32, 33 * 12, 33))


def test_it_is_found_where_no_single_occurrence_is_an_event():
    run = epochs(factor=1.6, last=32, n_epochs=30)
    assert detect(run) == ()
    (event,) = periodic_events(run, ())
    assert event.kind == "periodic"
    assert event.step == 32


@pytest.mark.parametrize("size", [5, 9, 17, 64])
def test_short_epochs_whose_spikes_merge_into_one_episode_are_still_a_period(size):
    run = epochs(size=size, n_epochs=max(12, 200 // size), factor=12.0)
    events = periodic_events(run, detect(run))
    assert [(e.kind, e.period) for e in events] == [("periodic", size)]


def test_another_event_stays_and_ids_follow_the_steps():
    run = epochs(factor=16.0, n_epochs=20)
    run.loss[48:50] *= 40.0
    run.loss[312:315] *= 60.0
    events = periodic_events(run, detect(run))
    assert [e.kind for e in events] == ["periodic", "spike", "spike"]
    assert [e.step for e in events] == [32, 48, 312]
    assert [e.id for e in events] == ["e1", "e2", "e3"]


def test_the_middle_of_the_epoch_and_a_start_that_is_not_zero():
    run = epochs(factor=8.0, phase=7, first_step=1000)
    (event,) = periodic_events(run, detect(run))
    assert (event.kind, event.step) == ("periodic", 1007)
    assert occurrences(run, event).tolist() == list(range(1007, 1000 + 33 * 12, 33))


def test_the_state_of_a_periodic_event_is_the_median_height_of_the_probe():
    run = epochs(factor=16.0)
    probe = np.ones(len(run))
    for at in range(32, len(run), 33):
        probe[at : at + 3] = 1.3
    run = Run(**{**vars(run), "signals": {"probe": Series(run.step, probe)}})
    (event,) = periodic_events(run, detect(run))
    assert event.state == pytest.approx(1.3)


def test_no_epoch_or_too_few_gives_a_reason_and_changes_nothing():
    run = epochs(n_epochs=3, factor=16.0)
    result = named_period(run)
    assert result.phase is None
    assert result.p_value == 1.0
    assert "at least 4" in (result.reason or "")
    events = detect(run)
    assert periodic_events(run, events) == events
    unknown = Run(source="test", reader="test", step=run.step, loss=run.loss)
    assert "steps_per_epoch" in (named_period(unknown).reason or "")
    assert periodic_events(unknown, events) == events


def test_missing_and_non_finite_steps_are_allowed():
    run = epochs(factor=16.0)
    run.loss[[5, 32, 200]] = np.nan
    keep = np.arange(len(run)) % 50 != 3
    gaps = Run(
        source="test", reader="test", step=run.step[keep], loss=run.loss[keep], epoch=run.epoch[keep],
        index=run.index[keep], n_samples=run.n_samples[keep], batch_size=32, steps_per_epoch=33,
    )  # fmt: skip
    assert named_period(gaps).phase == 32
    assert any(e.kind == "periodic" for e in periodic_events(gaps, detect(gaps)))


# --------------------------------------------------------------------------- no imagination


@pytest.mark.parametrize("rho", [0.0, 0.9])
@pytest.mark.parametrize("last", [32, 2])
def test_ordinary_epochs_have_no_period(rho, last):
    ps = []
    for seed in range(100):
        run = epochs(last=last, seed=seed, n_epochs=10)
        rng = np.random.default_rng(seed)
        e = rng.standard_normal(len(run)) * 0.1
        for i in range(1, len(e)):
            e[i] += rho * e[i - 1]
        run.loss[:] = run.loss * np.exp(e)
        ps.append(named_period(run, n_null=199).p_value)
    assert np.mean(np.array(ps) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


def test_one_huge_spike_is_not_a_period():
    run = epochs(last=32)
    run.loss[65] *= 1000.0
    events = detect(run)
    assert periodic_events(run, events) == events
    assert len(events) == 1


@given(st.integers(0, 1000), st.sampled_from([1.0, 3.0, 16.0]), st.integers(5, 40))
@settings(max_examples=25, deadline=None)
def test_ids_are_in_order_and_the_unit_of_the_loss_does_not_matter(seed, factor, size):
    run = epochs(seed=seed, factor=factor, size=size, n_epochs=8)
    events = periodic_events(run, detect(run))
    assert [e.id for e in events] == [f"e{k}" for k in range(1, len(events) + 1)]
    assert [e.step for e in events] == sorted(e.step for e in events)
    scaled = Run(**{**vars(run), "loss": run.loss * 1e-4})
    assert [(e.kind, e.step) for e in periodic_events(scaled, detect(scaled))] == [(e.kind, e.step) for e in events]


def test_the_minimum_detectable_height_is_about_right():
    limit = named_period(epochs(last=32, n_epochs=20)).minimum_detectable
    found = [
        named_period(epochs(last=32, n_epochs=20, seed=s, factor=float(np.exp(2 * limit)))).p_value for s in range(8)
    ]
    assert np.mean(np.array(found) <= 0.01) >= 0.75
