"""Patterns of a curve: found where they are, by the step, and not where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whyspike import echo
from whyspike.cause import Observation
from whyspike.causes.fixed_order import FixedOrder
from whyspike.causes.length_grouped import LengthGrouped
from whyspike.causes.memorization_step import MemorizationStep
from whyspike.curve import look, with_patterns
from whyspike.echo import find_echo, ranks
from whyspike.megabatches import find_oscillation, period_of
from whyspike.observe import events_of, observe
from whyspike.points import as_points, in_steps
from whyspike.staircase import find_staircase
from whyspike.types import Event, Note, Run


def run_of(y: np.ndarray, length: float | None = None, *, every: int = 1, lr: bool = True) -> Run:
    """A run of log losses; with `every`, means of as many steps, as a Trainer logs them."""
    loss, done = np.exp(y), np.arange(len(y))
    notes: tuple[Note, ...] = ()
    if every > 1:
        whole = len(y) // every * every
        loss, done = loss[:whole].reshape(-1, every).mean(axis=1), np.arange(every - 1, whole, every)
        notes = (Note(id="averaged-values", text="means"),)
    epoch = np.floor(done / length).astype(np.int64) if length else None
    index = done - np.ceil(epoch * length).astype(np.int64) if length and epoch is not None else None
    return Run(
        source="a test", reader="test", step=done + 1, loss=loss, epoch=epoch, index=index, notes=notes,
        lr=np.ones(len(loss)) if lr else None, steps_per_epoch=round(length) if length else None,
        facts={"reader_says": {}},
    )  # fmt: skip


def noise(n: int, seed: int = 0, sigma: float = 0.05) -> np.ndarray:
    return sigma * np.random.default_rng(seed).standard_normal(n)


# --------------------------------------------------------------------------- points


def test_a_log_of_every_50th_step_is_looked_at_as_points_and_told_in_steps() -> None:
    y = noise(300)
    y[200] += 3.0
    run = replace(run_of(y), step=50 * np.arange(1, 301))
    (event,) = events_of(run)[0]
    assert (event.kind, event.step, event.last_step) == ("spike", 10_050, 10_050)
    every_step = run_of(y)
    assert as_points(every_step) is every_step
    assert in_steps(every_step, [event]) == (event,)


def test_a_point_knows_its_place_among_the_points_of_its_epoch() -> None:
    run = run_of(noise(4065), 406.5, every=10)
    points = as_points(run)
    assert points.steps_per_epoch == 41
    assert points.index is not None
    starts = np.flatnonzero(points.index == 0)
    assert [int(run.step[r]) for r in starts[:3]] == [10, 410, 820]


# --------------------------------------------------------------------------- a staircase


def stairs(n_epochs: int, length: float, step: float, *, seed: int = 0, inside: float = 0.1) -> np.ndarray:
    t = np.arange(int(n_epochs * length))
    return noise(len(t), seed) - step * (np.floor(t / length) - inside * (t % length) / length)


@pytest.mark.parametrize("length", [120.0, 406.3125])
def test_a_staircase_is_found_at_its_boundaries(length: float) -> None:
    run = run_of(stairs(3, length, 0.4), length)
    found = find_staircase(run)
    assert found is not None
    assert found.steps == tuple(int(np.ceil(e * length)) + 1 for e in (1, 2))
    assert np.allclose(found.drops, 0.4, atol=5 * found.error)
    assert np.allclose(found.rises, 0.04, atol=5 * found.error)


def test_a_staircase_in_means_of_ten_steps() -> None:
    found = find_staircase(run_of(stairs(3, 406.3125, 0.4), 406.3125, every=10))
    assert found is not None
    assert found.steps == (410, 820)  # the points that span the boundary count on neither side
    assert np.allclose(found.drops, 0.4, atol=0.1)


def test_a_sawtooth_is_no_staircase() -> None:
    t = np.arange(1200)
    assert find_staircase(run_of(noise(1200) + 0.4 * (t % 300) / 300, 300.0)) is None


def test_a_sawtooth_that_hides_in_the_fall_of_the_first_epochs_is_no_staircase() -> None:
    t = np.arange(20 * 80) / 80
    falling = 3.0 * np.exp(-t / 3) + 0.3 * (t % 1.0 - 0.5) + noise(len(t))
    assert find_staircase(run_of(falling, 80)) is None


def test_a_cut_of_the_learning_rate_is_no_staircase() -> None:
    y = stairs(4, 200.0, 0.4)
    run = run_of(y, 200.0)
    assert find_staircase(run) is not None
    cut = replace(run, lr=0.5 ** (np.arange(800) // 200))
    assert find_staircase(cut) is None
    flat = run_of(stairs(4, 200.0, 0.4, inside=0.0), 200.0, lr=False)  # a cut that was not logged looks the same
    assert find_staircase(flat) is None
    assert find_staircase(run_of(stairs(4, 200.0, 0.4, inside=0.3), 200.0, lr=False)) is not None


def test_a_running_mean_is_no_staircase() -> None:
    raw = np.exp(noise(900) - 0.8 * np.arange(900) / 900)
    means = np.concatenate([np.cumsum(e) / np.arange(1, 301) for e in raw.reshape(3, 300)])
    assert find_staircase(run_of(np.log(means), 300.0)) is None


def test_a_spike_or_a_missing_loss_is_no_staircase() -> None:
    y = noise(900)
    y[300] += 4
    assert find_staircase(run_of(y, 300.0)) is None
    run = run_of(stairs(3, 300.0, 0.4), 300.0)
    loss = run.loss.copy()
    loss[5] = np.nan
    assert find_staircase(replace(run, loss=loss)) is None


# --------------------------------------------------------------------------- the same noise again


def passes(n: int, length: int, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = np.resize(rng.standard_normal(length), n)
    return 0.05 * (np.sqrt(share) * common + np.sqrt(1 - share) * rng.standard_normal(n)) - np.arange(n) / n


@pytest.mark.parametrize(("length", "n"), [(93, 400), (611, 1527), (1999, 5000)])
def test_the_length_of_a_pass_is_found_to_the_step(length: int, n: int) -> None:
    found = find_echo(run_of(passes(n, length, 0.8)))
    assert found is not None
    assert found.lag == length
    assert found.whole
    assert found.correlation == pytest.approx(0.8, abs=0.12)
    assert found.p_value <= 0.01
    assert found.by_chance < found.correlation / 2
    assert found.first == length + 1


def test_the_length_of_a_pass_in_a_log_of_every_tenth_step_with_gaps() -> None:
    y = passes(1500, 400, 0.9)
    kept = np.sort(np.random.default_rng(1).permutation(1500)[:1450])
    run = Run(source="", reader="", step=10 * kept, loss=np.exp(y[kept]))
    found = find_echo(run)
    assert found is not None
    assert found.lag == 4000


def test_a_part_that_comes_again_is_no_pass() -> None:
    y = noise(3000)
    y[2200:] = y[400:1200] + noise(800, 1, 0.01)
    found = find_echo(run_of(y))
    assert found is not None
    assert found.lag == 1800
    assert not found.whole
    assert (found.first, found.last) == pytest.approx((2201, 3000), abs=160)
    assert look(run_of(y)).echo is None


def test_a_pattern_at_one_place_of_the_epoch_is_not_the_same_noise() -> None:
    y = noise(1200)
    y[39::40] += 1.0
    found = find_echo(run_of(y))
    assert found is None


def test_irregular_steps_have_no_lags() -> None:
    steps = np.sort(np.random.default_rng(0).permutation(4000)[:400])
    assert find_echo(Run(source="", reader="", step=steps, loss=np.exp(noise(400)))) is None


def test_correlations_by_fourier_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    x, known = rng.standard_normal(200), (rng.random(200) > 0.2).astype(float)
    x *= known
    score, pairs = echo._correlations(x, known)
    for lag in range(echo.LEAST_LAG, 160):
        both = [(x[t], x[t + lag]) for t in range(200 - lag) if known[t] and known[t + lag]]
        assert pairs[lag] == len(both)
        if len(both) >= echo.LEAST_PAIRS:
            assert score[lag] == pytest.approx(sum(a * b for a, b in both) / len(both) ** 0.5, abs=1e-9)


# --------------------------------------------------------------------------- the wave of sorted batches


def sorted_batches(share: float, *, every: int, turned: bool = True, seed: int = 0) -> Run:
    """Three epochs of 406.3 steps in mega-batches of 50; `turned`: each epoch begins at another phase."""
    length, n = 406.3125, 1218
    t = np.arange(n)
    epoch = np.floor(t / length)
    inside = t - np.ceil(epoch * length) + (17 * epoch if turned else 0)
    wave = (inside % 50) / 50 - 0.5
    y = 0.1 * (np.sqrt(12 * share) * wave) + np.sqrt(1 - share) * noise(n, seed, 0.1)
    return run_of(y, length, every=every)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("every", [1, 10])
def test_the_wave_of_mega_batches_is_found_in_any_phase(every: int, turned: bool) -> None:
    found = find_oscillation(sorted_batches(0.7, every=every, turned=turned))
    assert found is not None
    assert (found.period, found.n_epochs, found.n_cycles) == (50, 3, 24)
    assert found.p_value <= 0.001
    assert found.share > 0.5
    assert found.by_chance < found.share
    assert find_oscillation(sorted_batches(0.0, every=every)) is None
    assert find_oscillation(sorted_batches(0.7, every=every), 40) is None  # it is not any period that is found


def test_a_mega_batch_is_50_batches_or_a_quarter_of_an_epoch() -> None:
    assert [period_of(s) for s in (None, 1000, 200, 100, 3)] == [50, 50, 50, 25, 1]


def test_what_comes_again_in_every_pass_is_no_wave() -> None:
    """Where the passes are equal the cycles of one are no new evidence in the next."""
    y = np.tile(noise(400, 3), 6) + noise(2400, 4, 0.005)
    found = look(run_of(y, 400.0))
    assert found.echo is not None
    assert found.oscillation is None


# --------------------------------------------------------------------------- events and causes


def test_the_steps_of_a_staircase_take_the_place_of_what_the_detector_saw() -> None:
    run = run_of(stairs(3, 400.0, 0.8), 400.0)
    seen = observe(run)
    assert [(e.id, e.kind, e.step, e.last_step) for e in seen.events] == [
        ("e1", "level-shift", 401, 404),
        ("e2", "level-shift", 801, 804),
    ]
    assert seen.events[0].reported == pytest.approx(np.exp(-0.8), rel=0.1)
    suspicion = MemorizationStep().signature(seen)
    assert suspicion is not None
    assert suspicion.outcome == "likely"
    assert suspicion.events == ("e1", "e2")
    assert "-0.8" in suspicion.evidence[0].observed


def test_other_events_stay_beside_a_pattern() -> None:
    run = run_of(stairs(3, 400.0, 0.4), 400.0)
    spike = Event(id="e1", kind="spike", step=500, last_step=500, reported=9.0)
    events = with_patterns(run, look(run), [spike])
    assert [e.kind for e in events] == ["level-shift", "spike", "level-shift"]
    assert with_patterns(run, look(run_of(noise(900), 300.0)), [spike]) == (spike,)


def test_a_fixed_order_says_the_length_of_the_pass_and_does_no_harm_by_itself() -> None:
    seen = observe(run_of(passes(1527, 611, 0.8)))
    suspicion = FixedOrder().signature(seen)
    assert suspicion is not None
    assert (suspicion.outcome, suspicion.harm) == ("likely", "none")
    assert "a pass is 611 steps long" in FixedOrder().sentence(seen, seen.events)
    (event,) = seen.events
    assert (event.kind, event.period) == ("periodic", 611)
    assert (event.last_step - event.step) % 611 == 0
    told = observe(replace(run_of(passes(1527, 611, 0.8)), steps_per_epoch=620))
    suspicion = FixedOrder().signature(told)
    assert suspicion is not None
    assert [e.expected for e in suspicion.evidence][1] == "620 steps, as the log has it"


def test_sorted_batches_are_named() -> None:
    seen = observe(sorted_batches(0.8, every=10))
    suspicion = LengthGrouped().signature(seen)
    assert suspicion is not None
    assert [(e.kind, e.period) for e in seen.events] == [("periodic", 50)]
    assert "period of 50 steps" in LengthGrouped().sentence(seen, seen.events)


def test_nothing_is_suspected_where_nobody_looked() -> None:
    seen = Observation(run=run_of(noise(900), 300.0), events=())
    for cause in (MemorizationStep(), FixedOrder(), LengthGrouped()):
        assert cause.signature(seen) is None
        assert cause.sentence(seen, ()).endswith(".")


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [2.0, 2.0, 1.0, 2.0, 5.0, 5.0], [0.0] * 5, [1.0]])
def test_ranks_are_those_of_scipy(values: list[float]) -> None:
    from scipy.stats import rankdata

    assert ranks(np.array(values)).tolist() == rankdata(values).tolist()
    many = np.random.default_rng(0).integers(0, 50, 1000).astype(float)
    assert ranks(many).tolist() == rankdata(many).tolist()
