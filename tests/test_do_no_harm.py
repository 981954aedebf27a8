"""First, do no harm: a training is bitwise the same with the recorder, whatever the recorder is given."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset

import whyspike
from whyspike.readers.runfolder import read

torch.set_num_threads(1)


class Augmented(Dataset):
    """Samples that differ at every look, from the three generators a user may draw from."""

    def __init__(self, *shape: int, n: int = 50) -> None:
        made = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, *shape, generator=made)
        self.y = torch.randint(0, 3, (n,), generator=made)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return self.x[i] * (1 + 0.1 * noise), self.y[i]


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 8, batch_first=True, num_layers=2, dropout=0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0][:, -1])


def mlp() -> tuple[nn.Module, Any, Dataset]:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), Augmented(6)


def conv() -> tuple[nn.Module, Any, Dataset]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True), Augmented(2, 6, 6)


def gru() -> tuple[nn.Module, Any, Dataset]:
    model = Gru()
    return model, torch.optim.RMSprop(model.parameters(), lr=1e-3), Augmented(5, 4)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def seed(number: int = 0) -> None:
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def bits(value: Any) -> Any:
    """Everything in a nested value, tensors as their bytes: equal only when bitwise equal."""
    if isinstance(value, torch.Tensor):
        return (
            value.dtype,
            tuple(value.shape),
            value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(k, bits(v)) for k, v in value.items()]
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def generators() -> list[Any]:
    return [bits(torch.get_rng_state()), random.getstate(), bits(np.random.get_state())]  # noqa: NPY002


def training(make: Callable, path: Path | None, *, epochs: int = 12, workers: int = 0, number: int = 0) -> list[Any]:
    """Train, recorded when a path is given. Returns everything that the recorder must not change."""
    seed(number)
    model, optimizer, data = make()
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=workers)
    rec = whyspike.watch(model, optimizer, loss_fn=loss_of, path=path) if path is not None else None
    losses = []
    for _ in range(epochs):
        for batch in loader if rec is None else rec.batches(loader):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if rec is not None:
                rec.step(loss)
    if rec is not None:
        assert rec.recording
        rec.close()
    flags = [m.training for m in model.modules()]
    return [losses, bits(model.state_dict()), bits(optimizer.state_dict()), flags, generators()]


@pytest.mark.parametrize("make", [mlp, conv, gru])
def test_a_training_is_bitwise_the_same_with_the_recorder(make: Callable, tmp_path: Path) -> None:
    without = training(make, None)
    assert training(make, tmp_path / "run") == without
    assert training(make, None, number=1) != without  # the comparison can tell
    run = read(tmp_path / "run")
    assert run.loss.tolist() == without[0]
    assert len(run.signals["probe"].step) > 3  # it did look at the network meanwhile
    assert len(run.signals["update_norm"].step) > 3
    assert run.capsules


class Embedding(nn.Module):
    """Sparse gradients, two names for one tensor, a parameter without gradient, half precision."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3, sparse=sparse)
        self.idle = nn.Parameter(torch.ones(2))
        if not sparse:
            self.tied = self.table.weight
            self.small = nn.Linear(3, 3, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.table((x.abs() * 5).long().clamp(0, 19)).mean(1)
        if hasattr(self, "tied"):
            found = self.small((found + self.tied.mean(0)).bfloat16()).float()
        return found


def sparse() -> tuple[nn.Module, Any, Dataset]:
    model = Embedding(sparse=True)
    return model, torch.optim.SparseAdam(model.table.parameters(), lr=0.1), Augmented(6)


def mixed() -> tuple[nn.Module, Any, Dataset]:
    model = Embedding(sparse=False)
    groups = [{"params": [model.table.weight]}, {"params": [*model.small.parameters(), model.idle], "lr": 0.01}]
    return model, torch.optim.AdamW(groups, lr=torch.tensor(0.1), foreach=False, capturable=False), Augmented(6)


def lbfgs() -> tuple[nn.Module, Any, Dataset]:
    model = nn.Linear(6, 3)
    return model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=2), Augmented(6)


def odd_training(make: Callable, path: Path | None) -> list[Any]:
    seed()
    model, optimizer, data = make()
    rec = whyspike.watch(model, optimizer, loss_fn=loss_of, path=path) if path is not None else None
    losses = []
    for _ in range(8):
        loader = DataLoader(data, batch_size=8, shuffle=True)
        for batch in loader if rec is None else rec.batches(loader):

            def closure(batch: Any = batch) -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            losses.append(loss.item())
            if rec is not None:
                rec.step(loss)
    if rec is not None:
        assert rec.recording
        rec.close()
    return [losses, bits(model.state_dict()), bits(optimizer.state_dict()), generators()]


@pytest.mark.parametrize("make", [sparse, mixed, lbfgs])
def test_odd_networks_and_optimizers_are_bitwise_the_same(make: Callable, tmp_path: Path) -> None:
    assert odd_training(make, tmp_path / "run") == odd_training(make, None)
    run = read(tmp_path / "run")
    assert len(run) == 56
    assert run.capsules
    for name in ("gradient_norm", "update_norm", "probe"):
        assert np.isfinite(run.signals[name].value).all()
        assert run.signals[name].value.min() > 0


def test_a_training_with_workers_is_bitwise_the_same(tmp_path: Path) -> None:
    without = training(mlp, None, epochs=2, workers=2)
    assert training(mlp, tmp_path / "run", epochs=2, workers=2) == without
    assert len(read(tmp_path / "run")) == 14


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_the_environment_switches_it_off(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHYSPIKE_DISABLE", value)
    model, optimizer, data = mlp()
    loader = DataLoader(data)
    rec = whyspike.watch(model, optimizer, path=tmp_path / "run")
    assert not rec.recording
    assert rec.batches(loader) is loader
    with rec, rec.evaluating():
        rec.step("nonsense")
        rec.log(a="nonsense")
        rec.flush()
    assert rec.path is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_the_environment_can_say_no_as_well(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHYSPIKE_DISABLE", value)
    model, optimizer, _ = mlp()
    rec = whyspike.watch(model, optimizer)
    assert rec.recording
    rec.close()


def test_it_lets_go_of_everything(tmp_path: Path) -> None:
    before = torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad._clip_grads_with_norm_
    model, optimizer, data = mlp()
    loader = DataLoader(data, batch_size=8, shuffle=True)
    sampler = loader.batch_sampler
    with whyspike.watch(model, optimizer, loss_fn=loss_of, path=tmp_path / "run") as rec:
        for batch in rec.batches(loader):
            assert loader.batch_sampler is sampler  # the user may use it again in the loop
            loss_of(model, batch).backward()
            optimizer.step()
            rec.step(1.0)
    rec.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad._clip_grads_with_norm_) == before
    assert loader.batch_sampler is sampler
    rec.step(1.0)  # after close: nothing, and no error


def test_the_loader_it_returns_is_like_the_users(tmp_path: Path) -> None:
    model, optimizer, data = mlp()
    loader = DataLoader(data, batch_size=8)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        ours = rec.batches(loader)
        assert len(ours) == len(loader)
        assert ours.dataset is data


def test_an_error_of_the_user_is_not_touched(tmp_path: Path) -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 6)
        raise OSError("the disk of the data set is gone")

    model, optimizer, _ = mlp()
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        drawn = iter(rec.batches(broken()))
        next(drawn)
        rec.step(1.0)
        with pytest.raises(OSError, match="the disk of the data set is gone"):
            next(drawn)
    assert len(read(tmp_path / "run")) == 1


# --------------------------------------------------------------------------- what cannot work


class NoOptimizer:
    """Something that steps, but is no torch optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def zero_grad(self) -> None:
        self.model.zero_grad()

    def step(self) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p -= 0.1 * p.grad


def broken_training(path: Path, steps: int = 40, **how: Any) -> tuple[list[str], whyspike.Recorder, list[Any]]:
    """A training of which one thing is not what the recorder needs: the warnings, the recorder, the weights."""
    seed()
    model, optimizer, data = mlp()
    optimizer = how.get("optimizer", lambda _: optimizer)(model)
    loader = how.get("loader", lambda d: DataLoader(d, batch_size=8, shuffle=True))(data)
    logged = how.get("logged", lambda loss: loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = how.get("model", lambda m: m)(model)
        with whyspike.watch(watched, optimizer, loss_fn=how.get("loss_fn", loss_of), path=path) as rec:
            done = 0
            while done < steps:
                for batch in rec.batches(loader):
                    optimizer.zero_grad()
                    loss = loss_of(model, batch)
                    loss.backward()
                    optimizer.step()
                    rec.step(logged(loss))
                    done += 1
    return [str(w.message) for w in caught], rec, [done, bits(model.state_dict()), generators()]


def raising(model: nn.Module, batch: Any) -> torch.Tensor:
    raise KeyError("labels")


BROKEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "vector loss": ({"logged": lambda loss: torch.ones(4)}, ["tensor of shape (4,)", "rec.step(loss.mean())"]),
    "no loss": ({"logged": lambda loss: None}, ["NoneType", "rec.step(loss)"]),
    "string loss": ({"logged": lambda loss: "high"}, ["type str", "rec.step(loss)"]),
    "loss_fn raises": ({"loss_fn": raising}, ["KeyError", "without a probe"]),
    "loss_fn returns a vector": (
        {"loss_fn": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")},
        ["(8,)", "without a probe"],
    ),
    "loss_fn returns nothing": ({"loss_fn": lambda m, b: None}, ["None", "without a probe"]),
    "no module": ({"model": lambda m: m.state_dict()}, ["OrderedDict", "torch.nn.Module", "watch(model, optimizer)"]),
    "no parameters": ({"model": lambda m: nn.Identity()}, ["Identity", "no parameter", "give watch() the module"]),
    "no optimizer": ({"optimizer": NoOptimizer}, ["NoOptimizer", "torch.optim.Optimizer", "watch(model, optimizer)"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_it_cannot_use_is_said_once_and_the_training_goes_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how, said = BROKEN[name]
    if name == "no parameters":
        how = {**how, "loss_fn": None}
    caught, _, after = broken_training(tmp_path / "run", **how)
    assert len(caught) == 1, caught
    for part in said:
        assert part in caught[0]
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("WHYSPIKE_DISABLE", "1")
    assert broken_training(tmp_path / "none", **how)[2] == after


def test_a_complex_loss_is_said_to_be_one(tmp_path: Path) -> None:
    caught, _, _ = broken_training(tmp_path / "run", logged=lambda loss: torch.ones((), dtype=torch.complex64))
    assert len(caught) == 1
    assert "complex" in caught[0]
    assert "rec.step(loss" in caught[0]


def test_what_was_recorded_before_an_unusable_loss_stays(tmp_path: Path) -> None:
    numbers = iter(range(100))
    caught, _, _ = broken_training(
        tmp_path / "run", logged=lambda loss: float(k) if (k := next(numbers)) < 20 else None
    )
    assert len(caught) == 1
    assert read(tmp_path / "run").loss.tolist() == [float(k) for k in range(20)]


def test_loaders_without_length_are_fine(tmp_path: Path) -> None:
    class Endless:
        def __init__(self, data: Dataset) -> None:
            self.data = data

        def __iter__(self) -> Iterator[Any]:
            return iter(DataLoader(self.data, batch_size=8))

    caught, rec, _ = broken_training(tmp_path / "run", loader=Endless)
    assert caught == []
    assert read(tmp_path / "run").n_samples.tolist()[:7] == [8] * 6 + [2]
    assert rec.path == tmp_path / "run"


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    caught, rec, after = broken_training(tmp_path / "file" / "run")
    assert len(caught) == 1
    assert str(tmp_path / "file" / "run") in caught[0]
    assert "watch(path=" in caught[0]
    assert not rec.recording
    assert after == broken_training(tmp_path / "whole")[2]


def test_a_file_in_the_place_of_the_run_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    caught, rec, _ = broken_training(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert caught or (rec.path is not None and rec.path.is_dir())


def test_a_user_who_turns_warnings_into_errors_keeps_the_training(tmp_path: Path) -> None:
    model, optimizer, _ = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
            rec.step(None)
            rec.log(a="x")
    assert not rec.recording


def test_a_number_that_is_none_does_not_end_the_record(tmp_path: Path) -> None:
    model, optimizer, _ = mlp()
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        rec.step(1.0)
        with pytest.warns(RuntimeWarning, match=r"rec.log\(name=…\) was given a value of type str"):
            rec.log(name="adam", accuracy=0.5)
        rec.step(2.0)
    run = read(tmp_path / "run")
    assert run.loss.tolist() == [1.0, 2.0]
    assert run.signals["accuracy"].value.tolist() == [0.5]


def test_recorders_and_hooks_of_the_user_on_one_optimizer(tmp_path: Path) -> None:
    """Hooks come and go while others are called; none may be lost and none may break the loop over them."""
    seed()
    model, optimizer, data = mlp()
    called = {"before": 0, "after": 0}

    def note(key: str) -> None:
        called[key] += 1

    optimizer.register_step_pre_hook(lambda *_: note("before"))
    with (
        whyspike.watch(model, optimizer, path=tmp_path / "one") as one,
        whyspike.watch(model, optimizer, path=tmp_path / "two") as two,
    ):
        optimizer.register_step_post_hook(lambda *_: note("after"))
        for batch in one.batches(two.batches(DataLoader(data, batch_size=8))):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            one.step(loss)
            two.step(loss)
        assert one.recording
        assert two.recording
    steps = len(read(tmp_path / "two"))
    assert called == {"before": steps, "after": steps}
    assert len(read(tmp_path / "one").signals["update_norm"].step) > 0
