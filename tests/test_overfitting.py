"""Over-fitting is noted where the held-out loss rises for long, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whyspike.overfitting import is_held_out_loss, overfitting
from whyspike.types import Run, Series


def run_of(held_out: np.ndarray, *, train: np.ndarray | None = None, every: int = 20, name: str = "val_loss") -> Run:
    n = len(held_out) * every
    loss = 0.1 + 1 / (1 + np.arange(n) / 50) if train is None else train
    at = np.arange(1, len(held_out) + 1) * every - 1
    return Run(
        source="test", reader="test", step=np.arange(n), loss=loss, signals={name: Series(at, held_out)}
    )  # fmt: skip


def noise(n: int, rho: float, seed: int) -> np.ndarray:
    e = np.random.default_rng([seed, n, int(100 * rho)]).standard_normal(n + 300) * np.sqrt(1 - rho**2)
    for i in range(1, len(e)):
        e[i] += rho * e[i - 1]
    return e[300:]


def overfits(n: int = 40, seed: int = 0) -> np.ndarray:
    t = np.arange(n) / n
    return (0.4 + np.exp(-15 * t) + 0.5 * np.maximum(0, t - 0.25)) * np.exp(0.03 * noise(n, 0, seed))


def test_it_is_noted_with_its_numbers():
    note = overfitting(run_of(overfits()))
    assert note is not None
    assert note.id == "overfitting"
    assert "val_loss was lowest at step" in note.text
    assert "training loss fell" in note.text


@pytest.mark.parametrize("n", [15, 40, 200])
def test_a_plain_case_is_found(n):
    assert sum(overfitting(run_of(overfits(n, seed))) is not None for seed in range(40)) >= 38


def test_a_training_loss_that_rises_as_well_is_no_overfitting():
    held_out = overfits()
    assert overfitting(run_of(held_out, train=np.linspace(0.1, 0.5, 800))) is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("val_loss", True), ("eval/loss", True), ("validationLoss", True), ("test_nll", True), ("dev ppl", True),
     ("loss", False), ("val_acc", False), ("val_hr10", False), ("interval_loss", False)],
)  # fmt: skip
def test_a_held_out_loss_is_known_by_its_name(name, is_one):
    assert is_held_out_loss(name) == is_one
    assert (overfitting(run_of(overfits(), name=name)) is not None) == is_one


def test_healthy_curves_are_silent():
    spoken = total = wandering = 0
    for rho in (0.0, 0.5, 0.8, 0.9, 0.99):
        for n in (15, 40, 200):
            for sd in (0.02, 0.1):
                for seed in range(24):
                    rng = np.random.default_rng([seed, n])
                    fall = 0.5 + 1.5 * np.exp(-np.arange(n) / n * rng.uniform(1, 20))
                    said = overfitting(run_of(fall * np.exp(sd * noise(n, rho, seed)))) is not None
                    spoken, total = spoken + said, total + 1
                    wandering += said and sd > 0.05 and rho >= 0.8
    assert spoken / total <= 0.015
    assert spoken == wandering  # only where the plateau itself wanders by a tenth


@pytest.mark.slow
@pytest.mark.parametrize("few", [True, False])
def test_a_network_that_learns_by_heart(few: bool, tmp_path: Path):
    """200 digits of which a third have a wrong label, and 1,200 digits with the right ones."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    import whyspike
    from whyspike.cases._data import digits

    torch.manual_seed(0)
    pixels, classes = digits(1700).tensors
    draw = torch.Generator().manual_seed(0)
    other = torch.randint(0, 10, (1700,), generator=draw)
    wrong = torch.where(torch.rand(1700, generator=draw) < 0.3, other, classes)
    train = TensorDataset(pixels[:200], wrong[:200]) if few else TensorDataset(pixels[:1200], classes[:1200])
    loader = DataLoader(train, batch_size=20, shuffle=True, generator=draw)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(60 if few else 20):
            for batch in rec.batches(loader):
                loss = F.cross_entropy(model(batch[0]), batch[1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
            with rec.evaluating(), torch.no_grad():
                rec.log(val_loss=F.cross_entropy(model(pixels[1200:]), classes[1200:]))
    made = whyspike.diagnose(tmp_path / "run")
    assert ("overfitting" in [n.id for n in made.run.notes]) == few
    assert ("note[overfitting]" in str(made)) == few
