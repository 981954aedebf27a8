"""What is recorded is what happened: every column against what the loop itself saw, computed the slow way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import whyspike
from whyspike.readers.runfolder import read
from whyspike.types import Run

torch.set_num_threads(1)

N = 50


def numbered() -> TensorDataset:
    """Samples that know their number."""
    made = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(N, 6, generator=made), torch.arange(N) % 3, torch.arange(N))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))


# --------------------------------------------------------------------------- which samples


class Reused:
    """A batch sampler that hands out one list, filled anew."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        rows = [0] * 10
        for start in range(5):
            rows[:] = [start * 10 + k for k in range(10)]
            yield rows


class Uneven:
    """A batch sampler with batches of many sizes and samples that repeat."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([3, 3, 1], [49], list(range(20, 40)), [0, 2, 4, 6, 8])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return iter([numbered()[i] for i in range(20)])


LOADERS = {
    "in order": lambda d: DataLoader(d, batch_size=8),
    "shuffled": lambda d: DataLoader(d, batch_size=8, shuffle=True),
    "last batch dropped": lambda d: DataLoader(d, batch_size=8, shuffle=True, drop_last=True),
    "sampler": lambda d: DataLoader(d, batch_size=7, sampler=WeightedRandomSampler([1.0] * N, 30)),
    "batch sampler": lambda d: DataLoader(d, batch_sampler=BatchSampler(SequentialSampler(d), 9, False)),
    "uneven batch sampler": lambda d: DataLoader(d, batch_sampler=Uneven()),
    "sampler of batches": lambda d: DataLoader(
        d, batch_size=None, sampler=BatchSampler(SequentialSampler(d), 6, False)
    ),
    "own generator": lambda d: DataLoader(d, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "two workers": lambda d: DataLoader(d, batch_size=8, shuffle=True, num_workers=2),
}


def train_on(loader: Any, path: Path, epochs: int = 3) -> tuple[Run, list[list[int]]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    served = []
    with whyspike.watch(model, optimizer, path=path) as rec:
        for _ in range(epochs):
            for batch in rec.batches(loader):
                served.append(batch[2].tolist())
                optimizer.step()
                rec.step(float(len(served)))
        assert rec.recording
    return read(path), served


@pytest.mark.parametrize("name", LOADERS)
def test_the_recorded_ids_are_those_that_were_served(name: str, tmp_path: Path) -> None:
    run, served = train_on(LOADERS[name](numbered()), tmp_path / "run", epochs=2 if "workers" in name else 4)
    assert run.sample_ids is not None
    assert [ids.tolist() for ids in run.sample_ids] == served
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [len(s) for s in served]


def staying(path: Path) -> tuple[Run, list[list[int]]]:
    loader = DataLoader(numbered(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    return train_on(loader, path)


def test_workers_that_stay_between_epochs(tmp_path: Path) -> None:
    run, served = staying(tmp_path / "run")
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [len(s) for s in served]
    assert run.sample_ids is None or [ids.tolist() for ids in run.sample_ids] == served


def test_the_ids_of_workers_that_stay_between_epochs(tmp_path: Path) -> None:
    run, served = staying(tmp_path / "run")
    assert run.sample_ids is not None
    assert [ids.tolist() for ids in run.sample_ids] == served


def test_ids_that_cannot_be_known_are_not_made_up(tmp_path: Path) -> None:
    run, served = train_on(DataLoader(Stream(), batch_size=8), tmp_path / "stream")
    assert run.sample_ids is None
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [len(s) for s in served]
    run, served = train_on([[t[:4] for t in numbered().tensors]], tmp_path / "list")
    assert run.sample_ids is None
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [4] * 3


def test_a_list_that_the_sampler_uses_again_is_not_misread(tmp_path: Path) -> None:
    run, served = train_on(DataLoader(numbered(), batch_sampler=Reused()), tmp_path / "run")  # type: ignore[arg-type]
    assert run.sample_ids is None or [ids.tolist() for ids in run.sample_ids] == served


def test_ids_beyond_32_bits(tmp_path: Path) -> None:
    class Huge(torch.utils.data.Dataset):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
            return torch.zeros(6), torch.tensor(0), i

    rows = [[5, 2**40], [7, 8], [2**33 + 1, 1]]
    run, served = train_on(DataLoader(Huge(), batch_sampler=rows), tmp_path / "run", epochs=2)
    assert run.sample_ids is not None
    assert [ids.tolist() for ids in run.sample_ids] == served == rows * 2


# --------------------------------------------------------------------------- where in the training


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, list[Any]]]:
    """A training with a scheduler, clipping and evaluations, and what its loop saw at every step."""
    path = tmp_path_factory.mktemp("recorded") / "run"
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=7 * 30)
    loader = DataLoader(numbered(), batch_size=8, shuffle=True)
    validation = DataLoader(numbered(), batch_size=25)
    seen: dict[str, list[Any]] = {}
    probe: list[list[torch.Tensor]] = []  # the first 32 samples

    def note(**values: Any) -> None:
        for name, value in values.items():
            seen.setdefault(name, []).append(value)

    with whyspike.watch(model, optimizer, loss_fn=loss_of, scheduler=scheduler, path=path) as rec:
        for epoch in range(30):
            for index, batch in enumerate(rec.batches(loader)):
                if len(probe) < 4:
                    probe.append([t.clone() for t in batch])
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                note(clip_norm=norm(p.grad for p in model.parameters()))
                clip_grad_norm_(model.parameters(), 0.7)
                note(
                    loss=loss.item(),
                    epoch=epoch,
                    index=index,
                    lr=optimizer.param_groups[0]["lr"],
                    gradient_norm=norm(p.grad for p in model.parameters()),
                    of_tensor={n: norm([p.grad]) for n, p in model.named_parameters()},
                    weight_norm=norm(model.parameters()),
                )
                before = [p.detach().clone() for p in model.parameters()]
                optimizer.step()
                note(update_norm=norm(p.detach() - b for p, b in zip(model.parameters(), before, strict=True)))
                scheduler.step()
                with torch.no_grad():
                    model.eval()
                    note(probe=np.mean([loss_of(model, piece).item() for piece in probe]))
                    model.train()
                rec.step(loss)
                if index == 3:
                    rec.log(epoch_so_far=epoch, loss=-1.0)
            with rec.evaluating(), torch.no_grad():
                for batch in rec.batches(validation):
                    loss_of(model.eval(), batch)
                model.train()
        assert rec.recording
    return read(path), seen


def test_epoch_index_and_loss(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, seen = recorded
    assert run.loss.tolist() == seen["loss"]
    assert run.epoch is not None
    assert run.epoch.tolist() == seen["epoch"]
    assert run.index is not None
    assert run.index.tolist() == seen["index"]
    assert run.step.tolist() == list(range(210))
    assert run.steps_per_epoch == 7
    assert run.batch_size == 8


def test_the_lr_is_that_of_the_update(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, seen = recorded
    assert run.lr is not None
    assert run.lr.tolist() == seen["lr"]


@pytest.mark.parametrize(
    ("name", "least"), [("gradient_norm", 15), ("update_norm", 10), ("weight_norm", 10), ("clip_norm", 210)]
)
def test_norms_are_those_of_the_slow_computation(
    name: str, least: int, recorded: tuple[Run, dict[str, list[Any]]]
) -> None:
    run, seen = recorded
    found = run.signals[name]
    assert len(found.step) >= least
    expected = np.array(seen[name])[found.step]
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    assert np.ptp(expected) > 0


def test_the_norm_of_every_tensor(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, seen = recorded
    for name in seen["of_tensor"][0]:
        found = run.signals[f"gradient_norm/{name}"]
        assert found.step.tolist() == run.signals["gradient_norm"].step.tolist()
        np.testing.assert_allclose(found.value, [seen["of_tensor"][k][name] for k in found.step], rtol=1e-4, atol=1e-7)


def test_the_users_clipping_is_seen(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, _ = recorded
    assert run.signals["clip_max_norm"].step.tolist() == run.step.tolist()
    assert set(run.signals["clip_max_norm"].value.tolist()) == {0.7}


def test_the_probe_is_an_evaluation_of_the_first_32_samples(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, seen = recorded
    found = run.signals["probe"]
    assert len(found.step) > 10
    assert found.step[0] >= 3  # with batches of 8 there are so many after the fourth
    np.testing.assert_allclose(found.value, np.array(seen["probe"])[found.step], rtol=1e-6)


def test_logged_numbers_are_signals(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, _ = recorded
    found = run.signals["epoch_so_far"]
    assert found.step.tolist() == [7 * e + 3 for e in range(30)]
    assert found.value.tolist() == list(range(30))
    assert set(run.signals["log/loss"].value.tolist()) == {-1.0}  # a name of ours is not overwritten


def test_evaluations_are_marked_and_not_counted(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    run, _ = recorded
    marks = run.marks
    assert [m.step for m in marks if m.name == "evaluation"] == [7 * e for e in range(1, 31)]
    assert [m.data["steps"] for m in marks if m.name == "epoch"] == [7] * 30
    assert run.n_samples is not None
    assert set(run.n_samples.tolist()) == {8, 2}


def test_the_header_says_what_was_trained(recorded: tuple[Run, dict[str, list[Any]]]) -> None:
    facts: dict[str, Any] = dict(recorded[0].facts)
    assert facts["model"] == "Sequential"
    assert facts["optimizer"]["name"] == "Adam"
    assert facts["scheduler"] == "OneCycleLR"
    assert facts["n_parameters"] == 16 * 6 + 16 + 32 + 48 + 3
    assert (facts["dataset"], facts["dataset_size"], facts["batch_size"]) == ("TensorDataset", N, 8)
    assert (facts["drop_last"], facts["shuffle"], facts["num_workers"]) == (False, True, 0)
    assert facts["torch"] == torch.__version__


# --------------------------------------------------------------------------- other loops


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_one_step(accumulate: int, tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(numbered(), batch_size=6, shuffle=True, drop_last=True)  # 8 batches
    served: list[list[int]] = []
    epochs, indices = [], []
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for epoch in range(4):
            held: list[int] = []
            steps = 0
            for k, batch in enumerate(rec.batches(loader)):
                loss_of(model, batch).backward()
                held += batch[2].tolist()
                if (k + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    rec.step(1.0)
                    served.append(held)
                    epochs.append(epoch)
                    indices.append(steps)
                    steps += 1
                    held = []
    run = read(tmp_path / "run")
    assert run.sample_ids is not None
    assert [ids.tolist() for ids in run.sample_ids] == served
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [6 * accumulate] * len(served)
    assert run.epoch is not None
    assert run.epoch.tolist() == epochs
    assert run.index is not None
    assert run.index.tolist() == indices
    marks = run.marks
    left = [m.data["left_over"] for m in marks if m.name == "epoch-cut"]
    assert left == ([2] * 4 if accumulate == 3 else [])


@pytest.mark.parametrize("as_number", [False, True])
def test_a_float64_loss_is_kept_exactly(as_number: bool, tmp_path: Path) -> None:
    losses = [1 / 3 + k * 1e-16 for k in range(100)] + [1e-320, math.inf, -0.0, 1e308, math.nan]
    model = network()
    with whyspike.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), path=tmp_path / "run") as rec:
        for value in losses:
            rec.step(value if as_number else torch.tensor([value], dtype=torch.float64))
    assert [repr(v) for v in read(tmp_path / "run").loss.tolist()] == [repr(v) for v in losses]


@pytest.mark.parametrize("value", [3, True, np.float32(0.5), np.array(0.25), torch.tensor(7), torch.tensor(True)])
def test_every_kind_of_number_is_a_loss(value: Any, tmp_path: Path) -> None:
    model = network()
    with whyspike.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), path=tmp_path / "run") as rec:
        rec.step(value)
    assert read(tmp_path / "run").loss.tolist() == [float(value)]


def test_an_lr_that_jumps_is_recorded_at_its_step(tmp_path: Path) -> None:
    """Set by hand in the loop, long after the last change, before and after the batch was drawn."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected, step = [], 0
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(60):
            if step == 210:
                optimizer.param_groups[0]["lr"] = 0.01
            for batch in rec.batches(DataLoader(numbered(), batch_size=8)):
                loss_of(model, batch).backward()
                expected.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                rec.step(1.0)
                step += 1
                if step == 305:
                    optimizer.param_groups[0]["lr"] = 0.02
    run = read(tmp_path / "run")
    assert run.lr is not None
    assert run.lr.tolist() == expected
    assert len(set(expected)) == 3


def test_a_warm_up_that_sets_the_lr_after_the_batch_is_drawn(tmp_path: Path) -> None:
    """As nanoGPT does: the lr is set in the loop's body, at every step, from the first."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    expected = []
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(40):
            for batch in rec.batches(DataLoader(numbered(), batch_size=8)):
                lr = 1e-3 * min(1.0, (len(expected) + 1) / 100) * (1 + len(expected)) ** -0.5
                for group in optimizer.param_groups:
                    group["lr"] = lr
                loss_of(model, batch).backward()
                optimizer.step()
                expected.append(lr)
                rec.step(1.0)
    run = read(tmp_path / "run")
    assert run.lr is not None
    assert run.lr.tolist() == expected


def test_clipping_by_value_and_of_another_network(tmp_path: Path) -> None:
    model, other = network(), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for k, batch in enumerate(rec.batches(DataLoader(numbered(), batch_size=8))):
            loss_of(model, batch).backward()
            other(torch.ones(1, 2)).sum().backward()
            clip_grad_norm_(other.parameters(), 0.1)
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.3)
            if k == 4:
                torch.nn.utils.clip_grad_norm_(model[0].parameters(), 5.0)
            optimizer.step()
            rec.step(1.0)
    run = read(tmp_path / "run")
    marks = run.marks
    assert [m.data for m in marks if m.name == "clip-value"] == [{"clip_value": 0.3}]
    assert run.signals["clip_max_norm"].step.tolist() == [4]
    assert run.signals["clip_max_norm"].value.tolist() == [5.0]


def test_two_recorders_do_not_mix(tmp_path: Path) -> None:
    """A GAN, say: two networks and two optimizers in one loop."""
    first, second = network(), network()
    of_first = torch.optim.SGD(first.parameters(), lr=0.1)
    of_second = torch.optim.SGD(second.parameters(), lr=0.2)
    with (
        whyspike.watch(first, of_first, path=tmp_path / "a") as a,
        whyspike.watch(second, of_second, path=tmp_path / "b") as b,
    ):
        for batch in b.batches(a.batches(DataLoader(numbered(), batch_size=8))):
            for model, optimizer, rec, limit in ((first, of_first, a, 1.0), (second, of_second, b, 2.0)):
                loss_of(model, batch).backward()
                clip_grad_norm_(model.parameters(), limit)
                optimizer.step()
                rec.step(limit)
    for path, limit in (("a", 1.0), ("b", 2.0)):
        run = read(tmp_path / path)
        assert run.loss.tolist() == [limit] * 7
        assert run.signals["clip_max_norm"].value.tolist() == [limit] * 7
        assert run.lr is not None
        assert run.lr.tolist() == [limit / 10] * 7


def test_a_pass_that_is_left_early_ends_its_epoch(tmp_path: Path) -> None:
    model = network()
    loader = DataLoader(numbered(), batch_size=8, shuffle=True)
    served = []
    with whyspike.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), path=tmp_path / "run") as rec:
        for _ in range(3):
            for batch in rec.batches(loader):
                rec.step(1.0)
                served.append(batch[2].tolist())
                if len(served) % 4 == 0:
                    break
    run = read(tmp_path / "run")
    assert run.epoch is not None
    assert run.epoch.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert run.index is not None
    assert run.index.tolist() == [0, 1, 2, 3] * 3
    assert run.sample_ids is not None
    assert [ids.tolist() for ids in run.sample_ids] == served


def test_without_batches_there_is_still_a_loss(tmp_path: Path) -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with whyspike.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), path=tmp_path / "run") as rec:
            for k in range(100):
                rec.step(float(k))
    run = read(tmp_path / "run")
    assert run.loss.tolist() == [float(k) for k in range(100)]
    assert run.epoch is None
    assert run.n_samples is None
    assert run.sample_ids is None
