"""A capsule holds everything that the steps after it need: restored, they run again bitwise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset, TensorDataset

import whyspike
from whyspike import batches, capsule
from whyspike.capsule_file import peek
from whyspike.errors import NotReplayable
from whyspike.readers.runfolder import read
from whyspike.seams import StepContext, StepRule, training_step

torch.set_num_threads(1)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, betas=(0.8, 0.95)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


def network(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3))


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def seed(number: int = 0) -> None:
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def bits(value: Any) -> Any:
    """Everything in a nested value, tensors as their bytes: equal only when bitwise equal."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(k, bits(v)) for k, v in value.items()]
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def everything(model: nn.Module, optimizer: Any, scheduler: Any = None) -> list[Any]:
    return [
        bits(model.state_dict()),
        bits(optimizer.state_dict()),
        None if scheduler is None else bits(scheduler.state_dict()),
        [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()],
        bits(torch.get_rng_state()),
        random.getstate(),
        bits(np.random.get_state()),  # noqa: NPY002
        torch.get_num_threads(),
    ]


def some_steps(model: nn.Module, optimizer: Any, scheduler: Any, n: int = 5) -> list[float]:
    losses = []
    for _ in range(n):
        x = torch.randn(8, 6) + np.random.rand() + random.random()  # noqa: NPY002
        optimizer.zero_grad()
        loss = loss_of(model, (x, torch.arange(8) % 3))
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_capture_and_restore_are_bitwise(name: str, on_disk: bool, tmp_path: Path) -> None:
    seed()
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    some_steps(model, optimizer, scheduler)
    model[3].eval()  # dropout off in a training network
    model[0].bias.requires_grad_(False)
    before = everything(model, optimizer, scheduler)
    held = capsule.capture(model, optimizer, scheduler, step=5)
    if on_disk:
        capsule.save(held, tmp_path / "step-000005.safetensors")
        held = capsule.load(tmp_path / "step-000005.safetensors")
    first = some_steps(model, optimizer, scheduler)
    model.eval()
    model[0].bias.requires_grad_(True)
    torch.set_num_threads(2)
    try:
        assert everything(model, optimizer, scheduler) != before
        capsule.restore(held, model, optimizer, scheduler)
    finally:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
    assert threads == 1
    assert everything(model, optimizer, scheduler) == before
    assert some_steps(model, optimizer, scheduler) == first
    assert held.step == 5


def test_a_capsule_restores_into_a_network_that_is_built_anew() -> None:
    seed()
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    some_steps(model, optimizer, scheduler)
    held = capsule.capture(model, optimizer, scheduler)
    first = some_steps(model, optimizer, scheduler)
    seed(1)
    other = network()
    fresh = torch.optim.Adam(other.parameters())
    later = torch.optim.lr_scheduler.StepLR(fresh, 3)
    capsule.restore(held, other, fresh, later)
    assert some_steps(other, fresh, later) == first


def test_restoring_keeps_the_tensors_that_the_user_holds() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    before = [id(p) for p in model.parameters()]
    held = capsule.capture(model, optimizer)
    capsule.restore(held, model, optimizer)
    assert [id(p) for p in model.parameters()] == before
    assert not optimizer.state  # as it was: before the first step there is none


def test_another_network_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = capsule.capture(model, optimizer)
    wider = network(17)
    with pytest.raises(NotReplayable, match=r"not the one that was recorded.*\(17, 6\).*\(16, 6\).*give the model"):
        capsule.restore(held, wider, torch.optim.SGD(wider.parameters(), lr=0.1))
    other = nn.Linear(6, 3)
    with pytest.raises(NotReplayable, match=r"differs in .*; give the model that watch"):
        capsule.restore(held, other, torch.optim.SGD(other.parameters(), lr=0.1))


def test_another_optimizer_is_refused() -> None:
    model = network()
    held = capsule.capture(model, torch.optim.SGD(model.parameters(), lr=0.1))
    groups = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with pytest.raises(NotReplayable, match=r"6 parameter groups over 6 tensors.*give the optimizer"):
        capsule.restore(held, model, groups)


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 100, b"\x80\x04K\x01."])
def test_a_file_that_is_no_capsule_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "step-000001.safetensors"
    file.write_bytes(content)
    with pytest.raises(NotReplayable, match=r"step-000001\.safetensors cannot be read as a capsule"):
        capsule.load(file)
    with pytest.raises(NotReplayable, match=r"step-000001\.safetensors"):
        peek(file)


def test_a_capsule_that_is_missing_or_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReplayable, match="cannot be read as a capsule"):
        capsule.load(tmp_path / "none.safetensors")
    model = network()
    file = tmp_path / "step-000000.safetensors"
    size = capsule.save(capsule.capture(model, torch.optim.SGD(model.parameters(), lr=0.1)), file)
    assert size == file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(NotReplayable, match="cannot be read as a capsule"):
        capsule.load(file)


# --------------------------------------------------------------------------- recorded, then replayed by hand


class Augmented(Dataset):
    """Samples that differ at every look, from the three generators a user may draw from."""

    def __init__(self, n: int = 50) -> None:
        made = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 6, generator=made)
        self.y = torch.randint(0, 3, (n,), generator=made)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return self.x[i] * (1 + 0.1 * noise), self.y[i]


def known_data() -> TensorDataset:
    made = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(48, 6, generator=made), torch.arange(48) % 3)


def record(
    path: Path, make: Callable, *, clip: float | None, accumulate: int = 1, data: Dataset | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    seed()
    model = network()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    loader = DataLoader(Augmented() if data is None else data, batch_size=8, shuffle=True)
    with whyspike.watch(model, optimizer, loss_fn=loss_of, scheduler=scheduler, path=path) as rec:
        for _ in range(20):
            held: list[torch.Tensor] = []
            for batch in rec.batches(loader):
                loss = loss_of(model, batch)
                (loss / accumulate if accumulate > 1 else loss).backward()
                held.append(loss.detach())
                if len(held) < accumulate:
                    continue
                if clip is not None:
                    clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                rec.step(torch.stack(held).mean() if accumulate > 1 else loss)
                held = []
            optimizer.zero_grad()
            with rec.evaluating():
                model.eval()
                loss_of(model, next(iter(loader)))
                model.train()
        assert rec.recording
    return model, optimizer


def replay(held: capsule.Capsule, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float | None]:
    capsule.restore(held, model, optimizer)
    losses: list[float | None] = []
    for step in held.steps:
        assert step.batches is not None
        step.prepare(optimizer)
        n = len(step.batches)
        at = StepContext(step=step.step, epoch=step.epoch, index=step.index, n_samples=step.n_samples, batch_size=8)
        rule = StepRule(accumulate=n, clip_grad_norm=step.clip)
        losses.append(training_step(model, optimizer, loss_of, step.drawn(), at, rule=rule).loss)
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_recorded_losses_come_out_again_bitwise(name: str, tmp_path: Path) -> None:
    model, optimizer = record(tmp_path / "run", OPTIMIZERS[name], clip=0.5 if "SGD" in name else None)
    run = read(tmp_path / "run")
    assert len(run.capsules) >= 3
    replayed = 0
    for path in run.capsules:
        held = capsule.load(path)
        losses = replay(held, model, optimizer)
        assert losses == run.loss[held.step : held.step + len(losses)].tolist()
        assert losses == [s.loss for s in held.steps]
        replayed += len(losses)
    assert replayed > 60


def check_accumulated(path: Path, data: Dataset) -> None:
    model, optimizer = record(path, OPTIMIZERS["Adam"], clip=1.0, accumulate=2, data=data)
    run = read(path)
    assert run.capsules
    for file in run.capsules:
        held = capsule.load(file)
        assert {len(s.batches or ()) for s in held.steps} == {2}
        assert replay(held, model, optimizer) == [s.loss for s in held.steps]


def test_accumulated_steps_come_out_again_bitwise(tmp_path: Path) -> None:
    check_accumulated(tmp_path / "run", known_data())


def test_accumulated_steps_of_a_loader_that_draws_come_out_again_bitwise(tmp_path: Path) -> None:
    check_accumulated(tmp_path / "run", Augmented())


def test_a_run_folder_holds_no_pickle(tmp_path: Path) -> None:
    record(tmp_path / "run", OPTIMIZERS["Adam"], clip=None)
    files = [f for f in (tmp_path / "run").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} == {".json", ".frames", ".safetensors"}
    for file in files:
        start = file.read_bytes()[:2]
        assert start[:1] != b"\x80"  # a pickle
        assert start != b"PK"  # what torch.save writes


def test_a_capsule_can_be_looked_into_with_numpy(tmp_path: Path) -> None:
    record(tmp_path / "run", OPTIMIZERS["Adam"], clip=None)
    for path in read(tmp_path / "run").capsules:
        held, seen = capsule.load(path), peek(path)
        assert (seen.step, seen.reasons, seen.batch_size) == (held.step, held.reasons, held.batch_size)
        for ours, theirs in zip(held.steps, seen.steps, strict=True):
            assert (ours.step, ours.loss, ours.n_samples) == (theirs.step, theirs.loss, theirs.n_samples)
            assert ours.batches is not None
            assert theirs.batches is not None
            for a, b in zip(ours.batches, theirs.batches, strict=True):
                np.testing.assert_array_equal(a[0].numpy(), b[0])
                np.testing.assert_array_equal(a[1].numpy(), b[1])


# --------------------------------------------------------------------------- batches that are not what was drawn


def check_stored(path: Path, data: TensorDataset) -> int:
    """Every stored batch is the one that was drawn; returns how many are stored."""
    stored = 0
    for file in read(path).capsules:
        for step in capsule.load(file).steps:
            assert step.ids is not None
            for batch in step.batches or ():
                assert torch.equal(batch[0], data.tensors[0][torch.from_numpy(step.ids)]), step.step
                stored += 1
    return stored


@pytest.mark.parametrize("since", [0, 3, 100])
def test_a_batch_that_the_user_modifies_is_noticed(since: int, tmp_path: Path) -> None:
    seed()
    model, data = network(), known_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = 0
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(60):
            for x, y in rec.batches(DataLoader(data, batch_size=8, shuffle=True)):
                if step >= since:
                    x.mul_(2.0)  # normalising in place, say
                optimizer.zero_grad()
                loss = loss_of(model, (x, y))
                loss.backward()
                optimizer.step()
                rec.step(loss)
                step += 1
    run = read(tmp_path / "run")
    assert [m.name for m in run.marks].count("batches-modified") == 1
    assert check_stored(tmp_path / "run", data) > 20


def test_a_loader_that_uses_its_buffer_again(tmp_path: Path) -> None:
    class Reusing:
        def __init__(self) -> None:
            self.x, self.seen = torch.zeros(8, 6), []

        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for _ in range(6):
                self.x.normal_()
                self.seen.append(self.x.clone())
                yield self.x, torch.arange(8) % 3

    seed()
    model, loader = network(), Reusing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(40):
            for batch in rec.batches(loader):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                optimizer.step()
                rec.step(loss)
    stored = 0
    for file in read(tmp_path / "run").capsules:
        for step in capsule.load(file).steps:
            for batch in step.batches or ():
                assert torch.equal(batch[0], loader.seen[step.step])
                stored += 1
    assert stored > 20


def test_batches_that_cannot_be_stored_are_left_out_and_said(tmp_path: Path) -> None:
    class Odd:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

    seed()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(3):
            for batch in rec.batches([Odd(torch.randn(8, 6)) for _ in range(5)]):
                model(batch.x).sum().backward()
                optimizer.step()
                rec.step(1.0)
    run = read(tmp_path / "run")
    reasons = [m.data["reason"] for m in run.marks if m.name == "batches-off"]
    assert len(reasons) == 1
    assert "Odd" in reasons[0]
    for path in run.capsules:
        assert all(s.batches is None for s in capsule.load(path).steps)


def test_store_batches_false_stores_none(tmp_path: Path) -> None:
    seed()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with whyspike.watch(model, optimizer, path=tmp_path / "run", store_batches=False) as rec:
        for _ in range(3):
            for batch in rec.batches(DataLoader(known_data(), batch_size=8)):
                loss_of(model, batch).backward()
                optimizer.step()
                rec.step(1.0)
    run = read(tmp_path / "run")
    assert run.capsules
    for path in run.capsules:
        assert all(s.batches is None for s in capsule.load(path).steps)
    assert run.sample_ids is not None


def test_batches_are_not_kept_by_reference(tmp_path: Path) -> None:
    model = network()
    held = capsule.capture(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = (torch.ones(2, 6), np.ones(2))
    copy = batches.clone(batch)
    batch[0].zero_()
    batch[1][:] = 0
    assert copy[0].sum() == 12
    assert copy[1].sum() == 2
    with torch.no_grad():
        model[0].weight.zero_()
    assert held.tensors["param.0.weight"].abs().sum() > 0
