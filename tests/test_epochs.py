"""Whole epochs replayed from their boundary: bitwise on the recorded samples, and in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from whyspike import orders
from whyspike.capsule import restore
from whyspike.epochs import EARLIER, Epochs
from whyspike.readers import read
from whyspike.record import watch
from whyspike.replay import Subject
from whyspike.rerun import train_recorded
from whyspike.seams import BASELINE, EpochContext, Intervention
from whyspike.training import Training

N, SIZE, EPOCHS = 100, 8, 8


class Numbers(Dataset):
    """Samples that know their own index; optionally with random noise from torch's generator."""

    def __init__(self, noise: float = 0.0) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.noise = noise
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.drawn.append(i)
        x = self.x[i]
        return (x + self.noise * torch.randn(4) if self.noise else x), self.x[i].sum().reshape(1)


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def subject_of(
    path: Path, *, noise: float = 0.0, accumulate: int = 1, scheduled: bool = False, clip: float | None = None
) -> Subject:
    torch.manual_seed(0)
    data = Numbers(noise)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    training = Training(
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        loader=DataLoader(data, batch_size=SIZE, shuffle=True),
        epochs=EPOCHS,
        accumulate=accumulate,
        clip_grad_norm=clip,
        scheduler=torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 200) if scheduled else None,
    )
    # closely: which snapshots there are must not depend on how fast the machine is
    recorder = watch(model, optimizer, loss_fn=loss_fn, scheduler=training.scheduler, path=path, closely=True)
    with recorder as rec:
        train_recorded(training, rec)
    recorder.flush()
    assert recorder.path is not None
    found = Subject.of(recorder, read(recorder.path))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"noise": 0.1},
        {"accumulate": 2},
        {"scheduled": True},
        {"clip": 0.3},
    ],
    ids=["plain", "augmented", "accumulated", "scheduled", "clipped"],
)
def test_the_recorded_order_is_replayed_bitwise(tmp_path: Path, how: dict[str, Any]) -> None:
    subject = subject_of(tmp_path / "run", **how)
    before = [p.detach().clone() for p in subject.model.parameters()]
    with subject.kept():
        epochs = Epochs(subject)
        windows = epochs.windows(0, 10_000, 12)
        assert len(windows) >= 4
        made = [epochs.replay(w) for w in windows if w.far <= 8]
        assert made
        assert all(m.reproduced for m in made), [m.noise for m in made]
        assert all(len(m.reported) == subject.run.steps_per_epoch for m in made)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))


def test_a_boundary_far_from_any_capsule_is_reached_by_training_on(tmp_path: Path) -> None:
    subject = subject_of(tmp_path / "run")
    kept = [p for p in subject.run.capsules if subject.capsule(p).step > 0]
    subject.run = subject.run.__class__(**{**vars(subject.run), "capsules": tuple(kept[:1])})
    subject.model[1].p = 0.0  # type: ignore[index, union-attr]
    epochs = Epochs(subject)
    windows = epochs.windows(0, 10_000, 12)
    assert [w.epoch for w in windows] == list(range(1, EPOCHS))
    assert windows[-1].far > 60
    with subject.kept():
        last = epochs.replay(windows[-1]).reported  # all at once
        again = Epochs(subject)
        step_by_step = [again.replay(w).reported for w in windows][-1]  # from boundary to boundary
    assert last == step_by_step


class Seen(Intervention):
    words = "seen"

    def __init__(self, epochs: int = 1) -> None:
        self.epochs = epochs
        self.at: list[EpochContext] = []

    def order(self, at: EpochContext, ids: Any) -> Any:
        self.at.append(at)
        return ids


def test_an_order_sees_what_was_drawn_before(tmp_path: Path) -> None:
    subject = subject_of(tmp_path / "run")
    epochs = Epochs(subject)
    window = epochs.windows(0, 10_000, 12, following=2)[1]
    seen = Seen(2)
    with subject.kept():
        made = epochs.replay(window, seen)
    first, second = seen.at
    assert (first.epoch, second.epoch) == (window.epoch, window.epoch + 1)
    assert len(first.previous) == window.epoch
    assert len(second.previous) == window.epoch + 1
    assert second.previous[-1].tolist() == np.concatenate(epochs.ids(window.epoch)).tolist()
    assert all(sorted(p.tolist()) == list(range(N)) for p in second.previous)
    assert made.event_step == window.last_step + 1
    assert len(made.reported) == 2 * (subject.run.steps_per_epoch or 0)
    assert int(np.isfinite(made.state).sum()) == 16


@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_order_trains_on_the_samples_that_it_names(tmp_path: Path, accumulate: int) -> None:
    subject = subject_of(tmp_path / "run", accumulate=accumulate)
    epochs = Epochs(subject)
    window = epochs.windows(0, 10_000, 12)[-1]
    data = subject.dataset
    with subject.kept():
        _ = subject.probe_batches
        epochs.replay(window)
        data.drawn.clear()
        made = epochs.replay(window, orders.ReversedOrder())
    wanted = np.concatenate(epochs.ids(window.epoch - 1))[::-1]
    assert data.drawn[-N:] == wanted.tolist()
    assert len(made.reported) == subject.run.steps_per_epoch


def test_two_arms_of_a_pair_begin_alike_and_every_arm_is_the_same_again(tmp_path: Path) -> None:
    subject = subject_of(tmp_path / "run")
    epochs = Epochs(subject)
    window = epochs.windows(0, 10_000, 12)[-1]
    with subject.kept():
        base, shuffled = epochs.replay(window), epochs.replay(window, orders.Reshuffle())
        again, other = epochs.replay(window, orders.Reshuffle()), epochs.replay(window, orders.Reshuffle(), redraw=1)
    assert base.state_before == shuffled.state_before
    assert shuffled.reported == again.reported
    assert shuffled.reported != other.reported
    assert epochs.replay is not None
    assert BASELINE.epochs == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_are_weighed_by_networks_older_than_the_order(tmp_path: Path, accumulate: int) -> None:
    subject = subject_of(tmp_path / "run", accumulate=accumulate)
    epochs = subject.epochs
    first, *_, last = epochs.windows(0, 10_000, 12)
    with subject.kept():
        order = epochs.replay(last, orders.Reshuffle()).order
        found = epochs.by_samples(last, order)
        assert epochs.by_samples(first, epochs.ids(first.epoch)) == []  # only the untrained network is that old
    begin = first.first_step + (last.epoch - first.epoch - 1) * (subject.run.steps_per_epoch or 0)
    old = sorted(c.step for c in map(subject.capsule, subject.run.capsules) if 0 < c.step <= begin)[-EARLIER:]
    states = [next(c for c in map(subject.capsule, subject.run.capsules) if c.step == step) for step in old]
    assert sorted(np.concatenate(order).tolist()) == list(range(N))
    steps = [np.concatenate(order[k : k + accumulate]) for k in range(0, len(order), accumulate)]
    wanted = []
    with subject.kept(), torch.no_grad():
        for state in states:
            restore(state, subject.model, subject.optimizer)
            subject.model.eval()
            x = subject.dataset.x
            wanted.append([float(F.mse_loss(subject.model(x[b]), x[b].sum(1, keepdim=True))) for b in steps])
    assert found == pytest.approx(np.mean(wanted, axis=0))


def test_a_boundary_that_was_looked_at_on_the_way_is_the_recorded_one(tmp_path: Path) -> None:
    subject = subject_of(tmp_path / "run")
    epochs = subject.epochs
    windows = epochs.windows(0, 10_000, 12)
    with subject.kept():
        for window in windows:
            for _ in epochs.along(window, (0.0, 0.5, 1.0)):
                subject.probe()
        assert all(epochs.replay(w).reproduced for w in windows)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    subject = subject_of(tmp_path / "run")
    assert Epochs(subject).missing() is None
    subject.dataset = None
    assert "dataset" in (Epochs(subject).missing() or "")
    assert Epochs(subject).windows(0, 1000, 4) == []
