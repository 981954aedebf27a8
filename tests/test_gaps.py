"""How long ago a sample was last trained on, against loops that are slow and obvious."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.epochs import Epochs
from whyspike.gaps import PER_BIN, WIDTH, Looked, curve, gaps, gaps_before, look, quarter_gaps, share_of_pattern
from whyspike.readers import read
from whyspike.record import watch
from whyspike.replay import Subject
from whyspike.rerun import train_recorded
from whyspike.training import Training
from whyspike.types import Run


def run_of(ids: list[np.ndarray], per_epoch: int, loss: np.ndarray | None = None) -> Run:
    step = np.arange(len(ids))
    return Run(
        source="a test",
        reader="test",
        step=step,
        loss=np.ones(len(ids)) if loss is None else loss,
        epoch=step // per_epoch,
        index=step % per_epoch,
        sample_ids=tuple(ids),
        steps_per_epoch=per_epoch,
        batch_size=len(ids[0]),
    )


def shuffled(n: int, size: int, epochs: int, *, replacement: bool = False, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    orders = [rng.integers(0, n, n) if replacement else rng.permutation(n) for _ in range(epochs)]
    ids = [o[k : k + size] for o in orders for k in range(0, n, size)]
    return run_of(ids, -(-n // size))


@given(st.integers(4, 40), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_gaps_are_those_of_a_loop_over_single_samples(
    n: int, size: int, epochs: int, replacement: bool, seed: int
) -> None:
    run = shuffled(n, size, epochs, replacement=replacement, seed=seed)
    found = gaps(run)
    assert found is not None
    last: dict[int, int] = {}
    drawn = 0
    assert run.sample_ids is not None
    for ids, row in zip(run.sample_ids, found, strict=True):
        for i, gap in zip(ids.tolist(), row.tolist(), strict=True):
            if i in last:
                assert gap == pytest.approx((drawn - last[i]) / n)
            else:
                assert np.isnan(gap)
        last.update(dict.fromkeys(ids.tolist(), drawn))
        drawn += len(ids)


def test_the_gaps_before_a_step_are_those_its_samples_have() -> None:
    run = shuffled(60, 7, 4)
    found = gaps(run)
    assert found is not None
    assert run.sample_ids is not None
    for step in (0, 8, 13, 30):
        expected = gaps_before(run, step)[run.sample_ids[step]]
        assert np.array_equal(found[step], expected, equal_nan=True)


def test_quarters_of_a_reshuffle() -> None:
    law = quarter_gaps(shuffled(4000, 40, 12))
    assert law == pytest.approx([0.625, 0.875, 1.125, 1.375], abs=0.02)


def test_quarters_of_a_fixed_order_are_one_and_with_replacement_they_are_alike() -> None:
    order = np.random.default_rng(0).permutation(400)
    fixed = run_of([order[k : k + 20] for _ in range(5) for k in range(0, 400, 20)], 20)
    assert quarter_gaps(fixed) == pytest.approx([1, 1, 1, 1])
    law = quarter_gaps(shuffled(4000, 40, 60, replacement=True))
    assert law is not None
    # samples that have not come up yet make the first epochs' gaps too short
    assert np.ptp(law) < 0.06


def test_without_ids_there_are_no_gaps() -> None:
    run = Run(source="a test", reader="test", step=np.arange(10), loss=np.ones(10), steps_per_epoch=5, batch_size=4)
    assert gaps(run) is None
    assert quarter_gaps(run) is None


# --------------------------------------------------------------------------- the fit


def synthetic(slope: float, noise: float, clusters: int = 8, seed: int = 0) -> Looked:
    """Batches at states of very different levels, whose bins are not the same: a fit without the states is wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for cluster in range(clusters):
        for k, phase in enumerate((0.25, 0.5, 0.75)):
            state = 3 * cluster + k
            level = 3.0 - 2 * phase + 0.1 * cluster
            for b in range(int((1 + phase) / WIDTH)):
                for _ in range(3):
                    gap = (b + rng.random()) * WIDTH
                    rows.append((cluster, state, b, gap, level + slope * gap + noise * rng.standard_normal(), 64))
    return Looked(*(np.array(c) for c in zip(*rows, strict=True)))


def slope_by_dummies(looked: Looked) -> float:
    """Least squares with a column for every state, weighted by repeating rows."""
    states = np.unique(looked.state)
    rows, values = [], []
    for k in range(len(looked.loss)):
        for _ in range(int(looked.n[k]) // 32):
            rows.append([looked.gap[k], *(1.0 if looked.state[k] == s else 0.0 for s in states)])
            values.append(looked.loss[k])
    return float(np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0][0])


def test_the_slope_is_that_of_least_squares_with_an_effect_of_every_state() -> None:
    run = shuffled(400, 20, 8)
    looked = synthetic(0.4, 0.1)
    made = curve(looked, run)
    assert made is not None
    assert made.slope == pytest.approx(slope_by_dummies(looked), abs=1e-9)
    assert made.slope == pytest.approx(0.4, abs=0.05)
    assert made.interval[0] < made.slope < made.interval[1]
    assert (made.states, made.clusters) == (24, 8)
    naive = np.polyfit(looked.gap, looked.loss, 1)[0]
    assert abs(naive - 0.4) > 0.1  # what the states' levels would do to it


def test_the_curve_and_what_it_predicts() -> None:
    n, size, epochs = 2000, 20, 12
    run = shuffled(n, size, epochs)
    found = gaps(run)
    assert found is not None
    loss = np.array([1.0 + 0.5 * np.nanmean(g) if np.isfinite(g).any() else 1.0 for g in found])
    run = run_of(list(run.sample_ids or ()), n // size, loss)
    made = curve(synthetic(0.5, 0.0), run)
    assert made is not None
    assert np.diff(made.loss) == pytest.approx(0.5 * np.diff(made.gap), abs=0.02)
    assert made.predicted == pytest.approx([-0.1875, -0.0625, 0.0625, 0.1875], abs=0.02)
    assert made.explained == pytest.approx(1.0, abs=0.08)


def test_an_interval_holds_nothing_where_there_is_no_effect() -> None:
    run = shuffled(400, 20, 8)
    inside = 0
    for seed in range(20):
        made = curve(synthetic(0.0, 0.2, seed=seed), run)
        assert made is not None
        inside += made.interval[0] <= 0 <= made.interval[1]
    assert inside >= 14  # eight clusters make a bootstrap interval somewhat too short


def test_the_share_of_a_pattern_and_its_error() -> None:
    shape = np.array([-0.1, 0.0, 0.0, 0.1])
    rows = np.array([shape * f + 3.0 for f in (0.1, 0.3, 0.1, 0.3)])
    assert share_of_pattern(rows, shape) == pytest.approx((0.2, np.std([0.1, 0.3, 0.1, 0.3], ddof=1) / 2))
    assert share_of_pattern(rows[:3], shape) is None
    assert share_of_pattern(np.full((5, 4), np.nan), shape) is None


def test_one_cluster_has_no_interval_and_no_curve() -> None:
    assert curve(synthetic(0.4, 0.1, clusters=1), shuffled(400, 20, 8)) is None


# --------------------------------------------------------------------------- on a network


def test_looking_at_a_network_gives_the_losses_of_samples_of_those_gaps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    data = TensorDataset(x, torch.randint(0, 5, (400,)))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 5))
    training = Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        loss_fn=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        loader=DataLoader(data, batch_size=20, shuffle=True),
        epochs=6,
    )
    recorder = watch(model, training.optimizer, loss_fn=training.loss_fn, path=tmp_path / "run")
    with recorder as rec:
        train_recorded(training, rec)
    run = read(tmp_path / "run")
    subject = Subject.of(recorder, run)
    assert subject is not None
    epochs = Epochs(subject)
    with subject.kept():
        looked = look(epochs, most=2, phases=(0.5,), seed=3)
        assert looked is not None
        assert len(np.unique(looked.state)) == 2
        window = epochs.windows(0, len(run), 2)[0]
        (step,) = epochs.along(window, (0.5,))
        own = gaps_before(run, step)
        model.eval()
        with torch.no_grad():
            each = F.cross_entropy(model(data.tensors[0]), data.tensors[1], reduction="none").numpy()
        first = looked.state == 0
        for b in np.unique(looked.bin[first]):
            rows = first & (looked.bin == b)
            inside = np.flatnonzero((own >= b * WIDTH) & (own < (b + 1) * WIDTH))
            assert looked.n[rows].sum() == min(len(inside), PER_BIN)
            assert np.average(looked.loss[rows], weights=looked.n[rows]) == pytest.approx(each[inside].mean(), rel=1e-5)
            assert np.average(looked.gap[rows], weights=looked.n[rows]) == pytest.approx(own[inside].mean())
