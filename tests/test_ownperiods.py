"""The periods that a run has by itself: named, tested with a correction, and told apart where that is possible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whyspike.detect import detect
from whyspike.ownperiods import own_periods
from whyspike.periods import occurrences, origins, period_results, periodic_events
from whyspike.types import Mark, Run, Series


def run_of(*, size: int = 37, epochs: int = 30, noise: float = 0.1, seed: int = 0, **columns) -> Run:
    n = size * epochs
    t = np.arange(n)
    loss = np.exp(noise * np.random.default_rng(seed).standard_normal(n))
    return Run(
        source="test", reader="test", step=t, loss=loss, epoch=t // size, index=t % size, steps_per_epoch=size,
        **columns,
    )  # fmt: skip


def marks(name: str, every: int, n: int) -> tuple[Mark, ...]:
    return tuple(Mark(s, name, {}) for s in range(every, n, every))


def test_every_period_has_its_origin():
    n = 37 * 300
    lr = 0.1 * (1 - np.arange(n) % 180 / 180)
    run = run_of(epochs=300, lr=lr, marks=marks("evaluation", 50, n) + marks("target", 100, n) + marks("epoch", 37, n),
                 facts={"num_workers": 4, "scaler": True, "accumulate": 1},
                 signals={"train_loss": Series(np.arange(0, n, 20), np.ones(len(range(0, n, 20)))),
                          "probe": Series(np.arange(0, n, 16), np.ones(len(range(0, n, 16))))})  # fmt: skip
    assert [(own.period, own.origins) for own in own_periods(run)] == [
        (37, ("the epoch",)),
        (4, ("the 4 workers of the loader",)),
        (20, ("the logging of train_loss",)),
        (50, ("the evaluation",)),
        (100, ("the update of the target network",)),
        (180, ("the cycle of the learning rate",)),
        (2000, ("the growth interval of GradScaler",)),
    ]


def test_what_is_irregular_or_too_rare_is_no_period():
    n = 37 * 30
    odd = tuple(Mark(int(s), "evaluation", {}) for s in np.cumsum(np.random.default_rng(0).integers(20, 60, 20)))
    assert own_periods(run_of(marks=odd, facts={"num_workers": 1, "scaler": True}))[1:] == ()
    assert own_periods(run_of(marks=marks("evaluation", n // 3, n)))[1:] == ()
    warmup = np.minimum(np.arange(n), 100) / 100 * (1 - np.arange(n) / n)
    assert own_periods(run_of(lr=warmup))[1:] == ()


def test_an_evaluation_after_every_epoch_cannot_be_told_from_it():
    (own,) = own_periods(run_of(marks=marks("evaluation", 37, 37 * 30)))
    assert own.origins == ("the epoch", "the evaluation")
    apart = own_periods(run_of(marks=marks("evaluation", 38, 37 * 30)))
    assert [o.period for o in apart] == [37, 38]


def test_spikes_after_every_evaluation_are_one_event():
    n = 37 * 30
    run = run_of(marks=marks("evaluation", 50, n))
    run.loss[50::50] *= 4.0
    (event,) = periodic_events(run, detect(run))
    assert (event.kind, event.period, event.step) == ("periodic", 50, 50)
    assert origins(run, event) == ("the evaluation",)
    assert occurrences(run, event).tolist() == list(range(50, n, 50))
    assert event.reported == pytest.approx(4.0, rel=0.2)


def test_a_bad_worker_is_counted_from_the_epochs_start():
    """37 batches and 4 workers: the place of the bad worker's batches in the run shifts by one every epoch."""
    run = run_of(facts={"num_workers": 4})
    run.loss[run.index % 4 == 2] *= 1.5
    (event,) = periodic_events(run, detect(run))
    assert (event.kind, event.period) == ("periodic", 4)
    steps = occurrences(run, event)
    assert (run.index[np.searchsorted(run.step, steps)] % 4 == 2).all()


def test_a_wave_along_the_cycle_of_the_learning_rate():
    n = 37 * 40
    t = np.arange(n)
    run = run_of(epochs=40, lr=0.1 * (1 - t % 100 / 100))
    run.loss[:] *= np.exp(-0.3 * (t % 100 / 100))
    (event,) = periodic_events(run, ())
    assert (event.period, event.is_wave) == (100, True)
    assert origins(run, event) == ("the cycle of the learning rate",)


def test_the_pattern_of_the_epoch_is_not_taken_for_that_of_two_workers():
    run = run_of(size=36, facts={"num_workers": 2})
    run.loss[35::36] *= 8.0
    assert [e.period for e in periodic_events(run, detect(run))] == [36]


def test_two_patterns_are_two_events():
    n = 37 * 60
    run = run_of(epochs=60, marks=marks("evaluation", 50, n))
    run.loss[50::50] *= 4.0
    run.loss[36::37] *= 6.0
    assert [e.period for e in periodic_events(run, detect(run))] == [37, 50]


def test_what_could_have_been_found_is_said_of_every_period():
    for result in period_results(run_of(marks=marks("evaluation", 50, 37 * 30))):
        spike, wave = result.detectable
        assert 0.1 <= spike < 0.3
        assert 0.05 < wave < 0.3


@pytest.mark.slow
def test_ordinary_runs_with_many_periods_have_no_event():
    odd, n = 0, 37 * 30
    for seed in range(150):
        run = run_of(seed=seed, noise=0.2, marks=marks("evaluation", 50, n), facts={"num_workers": 4},
                     lr=0.1 * (1 - np.arange(n) % 90 / 90))  # fmt: skip
        red = 0.3 * np.cumsum(np.random.default_rng(seed).standard_normal(n)) / np.sqrt(n)
        odd += bool(periodic_events(replace(run, loss=run.loss * np.exp(red)), ()))
    assert odd == 0


def test_a_signal_with_one_step_far_away_has_the_period_of_the_others_and_takes_no_memory():
    step = np.append(np.arange(0, 1000, 20), 10**14)
    run = run_of(signals={"train_loss": Series(step, np.ones(len(step)))})
    assert 20 in [own.period for own in own_periods(run)]
