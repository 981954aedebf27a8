"""What a user's loop does between two steps: noted, never disturbed, and re-enacted by a replay bitwise."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike import capsule
from whyspike.boundary import Boundary
from whyspike.checksum import checksums
from whyspike.readers.runfolder import read
from whyspike.replay import Subject
from whyspike.types import Mark, Run

torch.set_num_threads(1)

Batch = tuple[torch.Tensor, torch.Tensor]


class Network(nn.Module):
    """A classifier, and a copy of it that the optimizer does not train."""

    def __init__(self, *, target: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3, bias=False)
        )
        self.target: nn.Module | None = None
        if target:
            self.target = nn.Linear(6, 3)
            self.own = nn.Linear(6, 3)
            self.target.load_state_dict(self.own.state_dict())
            for p in self.target.parameters():
                p.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.net(x)
        return made if self.target is None else made + self.own(x) + 0.5 * self.target(x)


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data() -> TensorDataset:
    made = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(240, 6, generator=made), torch.arange(240) % 3)


Hook = Callable[[Any, int, nn.Module, torch.optim.Optimizer], "torch.optim.Optimizer | None"]


def nothing(rec: Any, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    return None


class Off:
    """In place of a recorder."""

    def batches(self, loader: Any) -> Any:
        return loader

    def step(self, loss: Any) -> None: ...

    def evaluating(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def train(
    rec: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    after: Hook = nothing,
    top: Hook = nothing,
    epoch_end: Hook = nothing,
    epoch_start: Hook = nothing,
    epochs: int = 3,
) -> list[float]:
    """A loop of 15 steps per epoch with a place for everything a user may do between two steps."""
    loader = DataLoader(data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    losses, step = [], 0
    for _ in range(epochs):
        optimizer = epoch_start(rec, step, model, optimizer) or optimizer
        for batch in rec.batches(loader):
            optimizer = top(rec, step, model, optimizer) or optimizer
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            rec.step(loss)
            losses.append(loss.item())
            step += 1
            optimizer = after(rec, step, model, optimizer) or optimizer
        optimizer = epoch_end(rec, step, model, optimizer) or optimizer
    return losses


def make(*, target: bool = False, adam: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Network(target=target)
    trained = [p for p in model.parameters() if p.requires_grad]
    if adam:
        return model, torch.optim.Adam(trained, lr=1e-2)
    return model, torch.optim.SGD(trained, lr=0.05, momentum=0.9)


def record(path: Path, *, target: bool = False, adam: bool = True, **hooks: Any) -> tuple[Run, Any]:
    """Train twice, with and without the recorder: the very same losses; returns what was recorded."""
    model, optimizer = make(target=target, adam=adam)
    plain = train(Off(), model, optimizer, **hooks)
    model, optimizer = make(target=target, adam=adam)
    with whyspike.watch(model, optimizer, loss_fn=loss_of, path=path) as rec:
        losses = train(rec, model, optimizer, **hooks)
        assert rec.recording
    assert losses == plain
    return read(path), rec


def check_replays(run: Run, rec: Any, *, across: int) -> None:
    """Every window over the step `across` comes out again bitwise."""
    subject = Subject.of(rec, run)
    assert subject is not None
    over = [p for p in run.capsules if subject.capsule(p).step < across <= subject.capsule(p).steps[-1].step]
    assert over, f"no capsule from before step {across}"
    with subject.kept():
        for path in over:
            window = subject.window(subject.capsule(path).step)
            made = subject.replay(window, horizon=60)
            assert made.first_step + len(made.reported) > across
            assert made.noise == 0.0, (path.name, made.noise)


def marks(run: Run, *names: str) -> list[Mark]:
    return list(run.marked(*names))


# --------------------------------------------------------------------------- evaluations


def left_on(rec, step, model, optimizer):
    if step % 15 == 7:
        with rec.evaluating():
            model.eval()
            loss_of(model, data()[:32])


def trains(rec, step, model, optimizer):
    model.train()


def test_modules_that_an_evaluation_leaves_in_eval_mode(tmp_path: Path) -> None:
    run, rec = record(tmp_path / "run", after=left_on, epoch_start=trains)
    seen = marks(run, "evaluation")
    assert [m.step for m in seen] == [7, 22, 37]
    assert [m.data["changed"] for m in seen] == [["modes"]] * 3
    assert [m.data["left_in_eval"] for m in seen] == [7] * 3
    back = marks(run, "modes")
    assert [(m.step, m.data["left_in_eval"], m.data["put_back"]) for m in back] == [(15, 0, 7), (30, 0, 7)]
    check_replays(run, rec, across=22)
    check_replays(run, rec, across=30)


def test_an_evaluation_that_was_not_announced_is_found_at_the_latest_a_few_steps_later(tmp_path: Path) -> None:
    def quiet(rec, step, model, optimizer):
        if step == 50:
            model.eval()

    run, _ = record(tmp_path / "run", after=quiet, epochs=8)
    [mark] = marks(run, "modes")
    assert 50 <= mark.step <= 50 + 32
    assert mark.data["left_in_eval"] == 7


@pytest.mark.parametrize("restores", ["inside", "after", "at the top of the loop"])
def test_an_evaluation_that_puts_the_mode_back_leaves_nothing(restores: str, tmp_path: Path) -> None:
    def evaluates(rec, step, model, optimizer):
        if step % 10 == 4:
            with rec.evaluating():
                model.eval()
                loss_of(model, data()[:32])
                if restores == "inside":
                    model.train()
            if restores == "after":
                model.train()

    run, _ = record(tmp_path / "run", after=evaluates, top=trains if "top" in restores else nothing)
    assert [m.data["changed"] for m in marks(run, "evaluation")] == [[]] * 5
    assert not marks(run, "modes", "boundary", "loaded")


def test_weights_that_an_evaluation_leaves_behind(tmp_path: Path) -> None:
    def averaged(rec, step, model, optimizer):
        if step in (20, 35):
            with rec.evaluating():
                for p in model.parameters():
                    p.data.mul_(0.9)  # of which no version counter tells

    run, rec = record(tmp_path / "run", after=averaged)
    assert [m.data["changed"] for m in marks(run, "evaluation")] == [["weights"]] * 2
    check_replays(run, rec, across=20)


def test_weights_that_are_swapped_and_put_back(tmp_path: Path) -> None:
    def swapped(rec, step, model, optimizer):
        if step == 20:
            with rec.evaluating():
                kept = copy.deepcopy(model.state_dict())
                for p in model.parameters():
                    p.data.mul_(0.9)
                loss_of(model.eval(), data()[:32])
                model.load_state_dict(kept)
                model.train()

    run, _ = record(tmp_path / "run", after=swapped)
    assert [m.data["changed"] for m in marks(run, "evaluation")] == [[]]
    assert not marks(run, "loaded", "boundary")


def test_statistics_and_generators_that_an_evaluation_moves(tmp_path: Path) -> None:
    def in_train_mode(rec, step, model, optimizer):
        if step == 20:
            with rec.evaluating(), torch.no_grad():
                loss_of(model, data()[:32])  # batch norm learns, dropout draws

    run, rec = record(tmp_path / "run", after=in_train_mode)
    [mark] = marks(run, "evaluation")
    assert mark.data["changed"] == ["buffers", "rng"]
    check_replays(run, rec, across=20)


def test_an_evaluation_between_the_batch_and_its_forward_pass(tmp_path: Path) -> None:
    def draws(rec, step, model, optimizer):
        if step == 20:
            with rec.evaluating():
                torch.rand(3)

    run, rec = record(tmp_path / "run", top=draws)
    check_replays(run, rec, across=20)


def test_what_happens_between_two_epochs_without_a_word(tmp_path: Path) -> None:
    def averaged(rec, step, model, optimizer):
        for p in model.parameters():
            p.data.mul_(0.9)

    run, rec = record(tmp_path / "run", epoch_end=averaged)
    assert [(m.step, m.data["changed"]) for m in marks(run, "boundary")] == [(15, ["weights"]), (30, ["weights"])]
    check_replays(run, rec, across=30)


# --------------------------------------------------------------------------- loaded, lost, replaced


def test_an_optimizer_that_is_loaded_without_its_state(tmp_path: Path) -> None:
    def resumes(rec, step, model, optimizer):
        if step == 20:
            fresh = torch.optim.Adam(optimizer.param_groups[0]["params"], lr=1e-2)
            optimizer.load_state_dict(fresh.state_dict())

    run, rec = record(tmp_path / "run", after=resumes)
    [mark] = marks(run, "loaded")
    assert (mark.step, mark.data["what"]) == (20, "optimizer")
    assert (mark.data["state"], mark.data["updates"]) == ([5, 0], [20.0, None])
    check_replays(run, rec, across=20)


def test_an_optimizer_that_is_loaded_with_its_state(tmp_path: Path) -> None:
    def resumes(rec, step, model, optimizer):
        if step == 20:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    run, rec = record(tmp_path / "run", after=resumes)
    [mark] = marks(run, "loaded")
    assert (mark.data["state"], mark.data["updates"]) == ([5, 5], [20.0, 20.0])
    check_replays(run, rec, across=20)


@pytest.mark.parametrize("where", ["after", "epoch_end"])
def test_an_optimizer_whose_state_is_emptied(where: str, tmp_path: Path) -> None:
    lost = 20 if where == "after" else 30

    def empties(rec, step, model, optimizer):
        if step == lost:
            optimizer.state.clear()

    run, rec = record(tmp_path / "run", **{where: empties})
    assert [m.step for m in marks(run, "optimizer-state")] == [lost]
    check_replays(run, rec, across=lost)


def test_a_momentum_that_is_emptied_between_two_epochs(tmp_path: Path) -> None:
    def empties(rec, step, model, optimizer):
        if step == 30:
            optimizer.state.clear()

    run, rec = record(tmp_path / "run", epoch_end=empties, adam=False)
    assert [m.step for m in marks(run, "optimizer-state")] == [30]
    check_replays(run, rec, across=30)


def test_an_optimizer_that_is_made_anew(tmp_path: Path) -> None:
    def anew(rec, step, model, optimizer):
        if step == 20:
            return torch.optim.Adam(optimizer.param_groups[0]["params"], lr=2e-2)
        return None

    run, rec = record(tmp_path / "run", after=anew)
    [mark] = marks(run, "loaded")
    assert (mark.step, mark.data["replaced"], mark.data["updates"]) == (20, "Adam", [20.0, None])
    assert run.lr is not None
    assert run.lr[19:21].tolist() == [1e-2, 2e-2]
    check_replays(run, rec, across=20)


def test_a_second_optimizer_that_never_steps_changes_nothing(tmp_path: Path) -> None:
    def idle(rec, step, model, optimizer):
        if step == 20:
            torch.optim.SGD(model.parameters(), lr=1.0)

    run, _ = record(tmp_path / "run", after=idle)
    assert not marks(run, "loaded", "optimizer-state")


@pytest.mark.parametrize("part", ["", "net", "net.0"])
def test_weights_that_are_loaded(part: str, tmp_path: Path) -> None:
    def loads(rec, step, model, optimizer):
        if step == 20:
            module = model.get_submodule(part)
            module.load_state_dict({k: v * 0.5 if v.is_floating_point() else v for k, v in module.state_dict().items()})

    run, rec = record(tmp_path / "run", after=loads)
    [mark] = marks(run, "loaded")
    assert (mark.step, mark.data["what"]) == (20, f"model{'.' if part else ''}{part}")
    check_replays(run, rec, across=20)


# --------------------------------------------------------------------------- targets


def hard_copy(rec, step, model, optimizer):
    if step % 10 == 0:
        model.target.load_state_dict(model.own.state_dict())


def hard_copy_by_hand(rec, step, model, optimizer):
    if step % 10 == 0:
        with torch.no_grad():
            for a, b in zip(model.target.parameters(), model.own.parameters(), strict=True):
                a.copy_(b)


def moving_average(rec, step, model, optimizer):
    with torch.no_grad():
        for a, b in zip(model.target.parameters(), model.own.parameters(), strict=True):
            a.lerp_(b, 0.1)


@pytest.mark.parametrize("where", ["after", "top"])
@pytest.mark.parametrize("copies", [hard_copy, hard_copy_by_hand])
def test_a_target_that_is_a_copy_now_and_then(copies: Hook, where: str, tmp_path: Path) -> None:
    run, rec = record(tmp_path / "run", target=True, **{where: copies})
    seen = [m for m in marks(run, "target") if m.step]
    assert [m.step for m in seen] == [10, 20, 30, 40]
    assert [m.data for m in seen] == [{"tensors": 2, "copied": 2}] * 4
    assert not marks(run, "loaded", "boundary")
    check_replays(run, rec, across=20)


def test_a_target_that_moves_with_every_step(tmp_path: Path) -> None:
    run, rec = record(tmp_path / "run", target=True, after=moving_average)
    assert [m.data.get("every_step") for m in marks(run, "target")] == [None] * 7 + [True]
    check_replays(run, rec, across=20)


# --------------------------------------------------------------------------- the value, and no harm


def test_a_boundary_comes_back_from_disk(tmp_path: Path) -> None:
    model, optimizer = make()
    train(Off(), model, optimizer, epochs=1)
    stated = capsule.optimizer_state(optimizer)
    change = Boundary(
        weights={"net.0.weight": torch.full((16, 6), 0.5)},
        buffers={"net.1.running_mean": torch.arange(16.0)},
        target={"a": "b"},
        modes=("net",),
        optimizer={"state": {0: {k: v.clone() for k, v in stated["state"][0].items()}}, "groups": None},
    )
    tree, tensors = change.encode("step.1.boundary")
    back = Boundary.decode(tree, tensors)
    assert back.parts == change.parts == ("weights", "buffers", "target", "modes", "optimizer")
    other, fresh = make()
    back.without("target").apply(other, fresh)
    assert torch.equal(other.net[0].weight, torch.full((16, 6), 0.5))
    assert other.net[1].running_mean.tolist() == list(range(16))
    assert [m.training for m in (other, other.net, other.net[0])] == [False, True, False]
    assert len(fresh.state) == 1
    assert change.without(*change.parts).parts == ()


def test_the_later_of_two_changes_counts() -> None:
    first = Boundary(weights={"a": torch.zeros(1), "b": torch.zeros(1)}, modes=("x",))
    made = first.and_then(Boundary(weights={"a": torch.ones(1)}))
    assert (made.weights["a"].item(), made.weights["b"].item(), made.modes) == (1.0, 0.0, ("x",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 33])
def test_a_checksum_notices_one_element(dtype: torch.dtype, n: int) -> None:
    x = torch.zeros(n, dtype=dtype)
    for at in range(n):
        y = x.clone()
        y[at] = 1
        assert checksums([x]) != checksums([y])
    twos = torch.full((n,), 2, dtype=torch.float32)
    assert checksums([twos]) != checksums([torch.zeros(n)])


def test_a_checksum_reads_any_strided_tensor_and_no_other() -> None:
    sums = checksums([torch.zeros(4, 4).t()[1:], torch.ones(5)[1:], torch.tensor(3.0), torch.zeros(0)])
    assert all(isinstance(s, int) for s in sums)
    assert checksums([torch.zeros(3).to_sparse()]) == [None]


def test_a_watched_model_can_be_copied_and_pickled(tmp_path: Path) -> None:
    model, optimizer = make(target=True)
    with whyspike.watch(model, optimizer, path=tmp_path / "run"):
        for value in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(optimizer)):
            assert value is not None
        torch.save(model, io.BytesIO())


def test_nothing_stays_wrapped_when_the_recorder_is_gone(tmp_path: Path) -> None:
    before = nn.Module.load_state_dict, torch.optim.Optimizer.__init__
    model, optimizer = make()
    with whyspike.watch(model, optimizer, path=tmp_path / "run"):
        assert nn.Module.load_state_dict is not before[0]
    assert (nn.Module.load_state_dict, torch.optim.Optimizer.__init__) == before
