"""What a plotted number averaged away comes back, to its rounding; and what it is, is told from what it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.deconvolve import closing, decay_of, moving_average, moving_window, rounding, running_mean
from whyspike.plotted import identify, plotted
from whyspike.types import Run, Series

losses = st.lists(st.floats(0.01, 10.0), min_size=12, max_size=60).map(np.array)
decimals = st.sampled_from([None, 2, 3, 4, 6])


def logged(values: np.ndarray, digits: int | None) -> np.ndarray:
    return values if digits is None else np.round(values, digits)


def half_unit(digits: int | None) -> float:
    return 0.0 if digits is None else 0.5 * 10.0**-digits


# --------------------------------------------------------------------------- round trips


@given(losses, st.integers(2, 20), st.booleans(), decimals)
@settings(max_examples=80, deadline=None)
def test_a_running_mean_gives_its_losses_back(loss, size, weighted, digits):
    t = np.arange(len(loss))
    n = np.where(t % size == size - 1, 3.0, 8.0) if weighted else np.ones(len(loss))
    weight = np.array([n[i - i % size : i + 1].sum() for i in t])
    means = np.array([(n * loss)[i - i % size : i + 1].sum() / weight[i] for i in t])
    made = running_mean(logged(means, digits), weight, half_unit(digits))
    assert (np.abs(made.loss - loss) <= made.limit * (1 + 1e-9) + 1e-9).all()


@given(losses, st.integers(1, 10), decimals)
@settings(max_examples=80, deadline=None)
def test_a_moving_window_gives_its_losses_back(loss, k, digits):
    means = np.array([loss[max(0, i + 1 - k) : i + 1].mean() for i in range(len(loss))])
    made = moving_window(logged(means, digits), k, half_unit(digits))
    assert (np.abs(made.loss - loss) <= made.limit * (1 + 1e-9) + 1e-9).all()


@given(losses, st.floats(0.0, 0.99), decimals)
@settings(max_examples=80, deadline=None)
def test_a_moving_average_gives_its_losses_back(loss, gamma, digits):
    m = loss.copy()
    for i in range(1, len(m)):
        m[i] = gamma * m[i - 1] + (1 - gamma) * loss[i]
    made = moving_average(logged(m, digits), gamma, half_unit(digits))
    assert np.isnan(made.loss[0])
    assert (np.abs(made.loss - loss)[1:] <= made.limit[1:] * (1 + 1e-9) + 1e-7).all()


def test_a_value_of_every_tenth_step_gives_the_mean_between():
    loss = np.random.default_rng(0).uniform(1, 2, 40)
    means = np.cumsum(loss) / np.arange(1, 41)
    made = running_mean(means[9::10], np.array([10, 20, 30, 40]))
    assert made.loss == pytest.approx(loss.reshape(4, 10).mean(axis=1))


@pytest.mark.parametrize("digits", [0, 1, 3, 6])
def test_the_rounding_is_read_from_the_numbers(digits):
    x = np.round(np.random.default_rng(0).uniform(0.1, 9, 200), digits)
    assert rounding(x) == pytest.approx(0.5 * 10.0**-digits)


def test_numbers_that_were_not_rounded_have_the_precision_of_float32():
    x = np.random.default_rng(0).uniform(1, 2, 200)
    assert 1e-8 < rounding(x) < 1e-7


def test_two_decimals_are_too_few_for_a_long_epoch_and_it_is_said():
    """causes.md B7: at s = 300, four decimals leave .013 and two decimals .7 or more."""
    means = np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, 300)) / np.arange(1, 301)
    fine, coarse = (running_mean(np.round(means, d), np.arange(1, 301)) for d in (4, 2))
    assert fine.limit[-1] == pytest.approx(0.03, rel=0.01)
    assert coarse.limit[-1] == pytest.approx(3.0, rel=0.01)
    assert fine.refused(0.2) is None
    assert "rounded" in (coarse.refused(0.2) or "")


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.98])
def test_the_decay_is_read_from_the_curve(gamma):
    m = 1 + 0.2 * np.random.default_rng(0).standard_normal(3000)
    for i in range(1, len(m)):
        m[i] = gamma * m[i - 1] + (1 - gamma) * m[i]
    assert decay_of(m) == pytest.approx(gamma, abs=0.04)


# --------------------------------------------------------------------------- a curve without its losses


def curves(size: int, epochs: int, seed: int = 0, trend: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, their running means and the steps since the epoch began."""
    t = np.arange(size * epochs)
    rng = np.random.default_rng(seed)
    loss = (0.5 + trend / np.sqrt(1 + t / size)) * np.exp(0.2 * rng.standard_normal(len(t)))
    weight = t % size + 1
    sums = np.cumsum(loss.reshape(epochs, size), axis=1).ravel()
    return loss, sums / weight, weight


@pytest.mark.parametrize("size", [20, 50, 300])
@pytest.mark.parametrize("digits", [None, 4])
def test_the_noise_of_a_running_mean_shrinks_and_that_of_losses_does_not(size, digits):
    for seed in range(5):
        loss, means, weight = curves(size, 10, seed)
        epoch = np.arange(len(loss)) // size
        made, plain = closing(logged(means, digits), epoch, weight), closing(logged(loss, digits), epoch, weight)
        assert made is not None
        assert plain is not None
        assert -1.35 < made.slope < -0.65
        assert abs(made.recovered_jump) <= 0.25 * abs(made.jump) + 3 * made.spread + made.limit
        assert -0.4 < plain.slope < 0.4


# --------------------------------------------------------------------------- which formula it is


SIZE, EPOCHS, B = 25, 12, 32


def run_of(seed: int = 0, bad: tuple[int, ...] = ()) -> Run:
    n = SIZE * EPOCHS
    t = np.arange(n)
    loss = (0.5 + 1 / np.sqrt(1 + t / 40)) * np.exp(0.2 * np.random.default_rng(seed).standard_normal(n))
    loss[list(bad)] = np.nan
    samples = np.where(t % SIZE == SIZE - 1, 5, B)
    return Run(
        source="test", reader="test", step=t, loss=loss, epoch=t // SIZE, index=t % SIZE, n_samples=samples,
        batch_size=B, steps_per_epoch=SIZE, facts={"dataset_size": B * (SIZE - 1) + 5},
    )  # fmt: skip


def mean(run: Run, first: int, last: int, weighted: bool = False) -> float:
    """Of the losses of the rows first to last, both included, as a loop would do it."""
    total = count = 0.0
    for row in range(first, last + 1):
        n = float(run.n_samples[row]) if weighted else 1.0
        total, count = total + n * float(run.loss[row]), count + n
    return total / count


def series(values: dict[int, float]) -> Series:
    return Series(np.array(list(values)), np.array(list(values.values()), dtype=np.float32).astype(np.float64))


def start(row: int) -> int:
    return row - row % SIZE


def average(run: Run, gamma: float, debiased: bool) -> dict[int, float]:
    made, level = {}, 0.0 if debiased else float(run.loss[0])
    for row, loss in enumerate(run.loss):
        level = gamma * level + (1 - gamma) * float(loss)
        made[row] = level / (1 - gamma ** (row + 1)) if debiased else level
    return made


RUN = run_of()
ROWS, ENDS = range(len(RUN)), range(SIZE - 1, len(RUN), SIZE)
FORMULAS = {
    "the loss of every 10th step": {r: float(RUN.loss[r]) for r in range(0, len(RUN), 10)},
    "the mean of the losses since the epoch began": {r: mean(RUN, start(r), r) for r in ROWS},
    "the mean of the losses since the epoch began, weighted by samples": {
        r: mean(RUN, start(r), r, True) for r in ROWS
    },
    "the mean of the epoch's losses": {r: mean(RUN, start(r), r) for r in ENDS},
    "the mean of the epoch's losses, weighted by samples": {r: mean(RUN, start(r), r, True) for r in ENDS},
    "the mean of the epoch's losses, divided by S + 1": {r: mean(RUN, start(r), r) * SIZE / (SIZE + 1) for r in ENDS},
    "the mean of the epoch's losses, divided by S - 1": {r: mean(RUN, start(r), r) * SIZE / (SIZE - 1) for r in ENDS},
    "the mean of the epoch's losses, weighted by samples, divided by S x B": {
        r: mean(RUN, start(r), r, True) * (B * (SIZE - 1) + 5) / (B * SIZE) for r in ENDS
    },
    "the mean of the losses since the value before": {r: mean(RUN, r - 9, r) for r in range(9, len(RUN), 10)},
    "the mean of all losses since the training began": {r: mean(RUN, 0, r) for r in ROWS},
    "the mean of the latest 20 losses": {r: mean(RUN, max(0, r - 19), r) for r in ROWS},
    "a moving average of the losses, gamma 0.93": average(RUN, 0.93, debiased=False),
    "a moving average of the losses, gamma 0.98": average(RUN, 0.98, debiased=True),
}


@pytest.mark.parametrize("words", FORMULAS)
@pytest.mark.parametrize("digits", [None, 5])
def test_a_logged_number_is_recognised(words, digits):
    made = series({r: float(logged(np.array(v), digits)) for r, v in FORMULAS[words].items()})
    found = identify(RUN, made)
    assert found is not None
    assert found.words == words
    assert found.residual <= found.tolerance < found.rival_residual / 10


def test_what_is_logged_before_the_step_belongs_to_the_next_one():
    before = {max(0, r - 1): v for r, v in FORMULAS["the mean of the losses since the epoch began"].items()}
    found = identify(RUN, series(before))
    assert found is not None
    assert (found.form, found.shift) == ("running-mean", 1)


def test_what_is_no_formula_of_the_losses_is_not_recognised():
    rng = np.random.default_rng(1)
    epoch = FORMULAS["the mean of the epoch's losses"]
    other = {r: v * float(np.exp(0.01 * rng.standard_normal())) for r, v in epoch.items()}
    assert identify(RUN, series(other)) is None
    assert identify(RUN, series(dict.fromkeys(ROWS, 0.1))) is None
    assert identify(RUN, series({0: 1.0, 10: 2.0})) is None
    two_decimals = series({r: round(v, 1) for r, v in epoch.items()})
    assert identify(RUN, two_decimals) is None  # the weighted mean fits as well


def test_only_what_the_user_logged_is_looked_at():
    values = series(FORMULAS["the mean of the epoch's losses"])
    run = replace(RUN, signals={"train_loss": values, "probe": values, "gradient_norm/a": values})
    assert list(plotted(run)) == ["train_loss"]


def test_losses_that_are_not_finite_and_what_was_done_with_them():
    run = run_of(bad=(52, 53, 130, 131, 201))
    good = np.isfinite(run.loss)
    windows = range(9, len(run), 10)

    def dropped(first: int, last: int) -> float:
        return float(run.loss[first : last + 1][good[first : last + 1]].mean())

    def transformers(first: int, last: int) -> float:
        total = 0.0
        for k, row in enumerate(range(first, last + 1)):
            total += float(run.loss[row]) if good[row] else total / (1 + k)
        return total / (last + 1 - first)

    for treatment, rule in (("dropped", dropped), ("window", transformers)):
        found = identify(run, series({r: rule(r - 9, r) for r in windows}))
        assert found is not None
        assert (found.form, found.treatment) == ("window-mean", treatment)
    found = identify(run, series({r: float(run.loss[r]) if good[r] else 0.0 for r in ROWS}))
    assert found is not None
    assert (found.form, found.treatment) == ("loss", "zero")
    bare = {r: float(run.loss[r]) for r in ROWS}
    found = identify(run, series(bare))
    assert found is not None
    assert found.form == "loss"
