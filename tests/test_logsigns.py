"""What a log alone shows of causes that are otherwise proven on the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whyspike import diagnose
from whyspike.detect import FULL_BATCH_STEPS
from whyspike.types import Diagnosis


def said(
    folder: Path,
    loss: np.ndarray,
    steps_per_epoch: int,
    lr: np.ndarray | None = None,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> Diagnosis:
    """The diagnosis of a CSV file with these losses."""
    path = folder / "log.csv"
    lr = np.full(len(loss), 0.01) if lr is None else lr
    rows = [f"{k},{k // steps_per_epoch},{v!r},{r}" for k, (v, r) in enumerate(zip(loss.tolist(), lr, strict=True))]
    path.write_text("\n".join(["step,epoch,loss,lr", *rows]))
    return diagnose(path, batch_size=batch_size, dataset_size=dataset_size)


def noise(n: int, seed: int = 0, scatter: float = 0.1) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0.0, scatter, n))


def top(made: Diagnosis) -> str | None:
    return made.answer.cause


def test_one_spike_in_every_epoch_at_any_place_is_one_sample(tmp_path):
    loss = noise(1200)
    places = np.array([30, 171, 95, 12, 188, 120])
    loss[np.arange(6) * 200 + places] *= 40.0
    made = said(tmp_path, loss, 200)
    assert top(made) == "outlier-sample"
    assert made.verdicts[0].outcome == "likely"
    # The same number of spikes, two of them in one epoch and none in another
    loss = noise(1200)
    loss[np.array([0, 1, 2, 3, 3, 5]) * 200 + places] *= 40.0
    assert top(said(tmp_path, loss, 200)) != "outlier-sample"


def test_an_ordinary_loss_that_is_inf_at_once_is_a_logarithm_of_zero(tmp_path):
    loss = noise(200)
    loss[120], loss[121:] = np.inf, np.nan
    made = said(tmp_path, loss, 50)
    assert top(made) == "unstable-cross-entropy"
    assert "step 120" in made.answer.sentence
    growing = noise(200)
    growing[100:120] *= np.exp(np.arange(20))
    growing[120], growing[121:] = np.inf, np.nan
    assert top(said(tmp_path, growing, 50)) != "unstable-cross-entropy"
    skipped = noise(200)
    skipped[120] = np.inf  # a scaler skips such a step, and the training goes on
    assert top(said(tmp_path, skipped, 50)) != "unstable-cross-entropy"


def test_spikes_of_full_batches_blame_the_step_size_unless_it_changes(tmp_path):
    n = 2 * FULL_BATCH_STEPS
    loss = 0.1 * noise(n, scatter=0.002)
    for at in (200, 350, 520, 700):
        loss[at : at + 6] *= np.array([1.3, 1.8, 2.5, 2.0, 1.5, 1.2])
    assert top(said(tmp_path, loss, 1)) == "adaptive-eos"
    lr = 0.01 * (1 + (np.arange(n) % 175 < 25))
    assert top(said(tmp_path, loss, 1, lr)) != "adaptive-eos"
    assert top(said(tmp_path, loss[: FULL_BATCH_STEPS - 1], 1)) != "adaptive-eos"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_loss_that_rises_through_every_epoch_is_the_sawtooth_unless_the_lr_goes_with_it(tmp_path, restarts):
    n, period = 2000, 100
    phase = (np.arange(n) % period) / period
    loss = noise(n, scatter=0.05) * np.exp(0.4 * phase)
    lr = 0.01 * (1 - 0.9 * phase) if restarts else np.full(n, 0.01)
    made = said(tmp_path, loss, period, lr)
    assert top(made) == ("lr-restart" if restarts else "epochal-sawtooth")
    assert (made.answer.harm == "none") is not restarts


@pytest.mark.parametrize("period", [17, 100])
def test_the_last_batch_of_known_size_says_that_the_loss_is_divided_twice(tmp_path, period):
    size, rest = 64, 6
    loss = noise(60 * period, scatter=0.15)
    loss[period - 1 :: period] *= size / rest
    made = said(tmp_path, loss, period)
    assert made.answer.status == "unexplained"
    assert "once per epoch" in made.answer.sentence
    assert any("--batch-size" in words for words in made.missing)
    made = said(tmp_path, loss, period, batch_size=size, dataset_size=(period - 1) * size + rest)
    assert top(made) == "double-averaged-loss"
    assert made.verdicts[0].outcome == "likely"


def test_a_thinned_log_with_one_spike_says_nothing_of_samples(tmp_path):
    loss = noise(300)
    loss[150] *= 40.0
    path = tmp_path / "log.csv"
    path.write_text(
        "\n".join(["step,epoch,loss", *(f"{50 * k},{50 * k // 63},{v!r}" for k, v in enumerate(loss.tolist()))])
    )
    assert diagnose(path).answer.status == "unexplained"


def warmed_up(peak: float, n: int = 4000, warmup: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Losses and learning rates of a linear model under SGD: a warm-up, then 1 / sqrt(t) (Vaswani et al. 2017).

    The largest eigenvalue of the inputs' covariance is 1, so that a learning rate above about 2 is more than it bears.
    """
    rng = np.random.default_rng(0)
    scales, w, truth = np.sqrt(1 / np.arange(1, 9)), np.zeros(8), rng.normal(size=8)
    t = np.arange(1, n + 1)
    lr = peak * np.minimum(t / warmup, np.sqrt(warmup / t))
    loss = np.empty(n)
    for k in range(n):
        x = rng.normal(size=(512, 8)) * scales
        rest = x @ (w - truth) + 0.3 * rng.normal(size=512)
        loss[k] = 0.5 * np.mean(rest**2)
        w = w - lr[k] * x.T @ rest / 512
    return loss, lr


def test_a_height_of_the_learning_rate_that_is_too_much_shows_where_the_warm_up_ends(tmp_path):
    loss, lr = warmed_up(2.2)
    made = said(tmp_path, loss, 1000, lr)
    assert top(made) == "no-warmup"
    assert made.verdicts[0].outcome == "likely"
    assert "where the warm-up of the learning rate ends (step 199)" in made.answer.sentence
    assert "warmup_steps=800" in made.verdicts[0].cures[0].code["hf"]
    loss, lr = warmed_up(1.1)
    assert made.events
    assert said(tmp_path, loss, 1000, lr).answer.status == "healthy"


def test_what_happens_elsewhere_or_to_one_value_is_not_the_end_of_the_warm_up(tmp_path):
    quiet, lr = warmed_up(1.1)
    for at, width in ((200, 1), (1500, 12)):
        loss = quiet.copy()
        loss[at : at + width] *= 8 * np.exp(-np.arange(width) / 4)
        assert top(said(tmp_path, loss, 1000, lr)) != "no-warmup"
    loss[200:212] *= 8 * np.exp(-np.arange(12) / 4)  # at the end of the warm-up, and 1,300 steps later as well
    assert top(said(tmp_path, loss, 1000, lr)) != "no-warmup"
