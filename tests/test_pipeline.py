"""The stages composed, as a user calls them: in a loop, on a training, on a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike.errors import BadTraining, UnreadableRun
from whyspike.pipeline import demo, prove


def twice(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y) / len(x)


def once(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def make(seed: int = 0, *, loss_fn=twice, lr: float = 1.2, n: int = 258) -> whyspike.Training:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(n, 6, generator=g)
    y = torch.tanh(x @ torch.randn(6, 8, generator=g)) + 0.3 * torch.randn(n, 8, generator=g)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8))
    return whyspike.Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        loss_fn=loss_fn,
        loader=DataLoader(
            TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(seed)
        ),
        epochs=14,
    )


@pytest.fixture(autouse=True)
def here(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the default run folder goes


def test_prove_confirms_and_verifies_and_the_folder_remembers(tmp_path: Path) -> None:
    made = prove(make, path=tmp_path / "run")
    top = made.verdicts[0]
    assert (made.answer.status, top.cause, top.outcome) == ("explained", "double-averaged-loss", "confirmed")
    [event] = made.events
    assert (event.kind, event.period) == ("periodic", 17)
    assert event.attribution is not None
    assert event.attribution.scale == pytest.approx(8.0, rel=1e-3)
    arms = {a.words: a for a in top.arms}
    assert top.arms[0].n >= 8
    assert arms["that batch's loss multiplied by b/B (divided once)"].share_removed >= 0.8
    cures = {c.words.split(":")[0]: c.verified for c in top.cures}
    assert cures["divide once"] is True
    assert cures["not this"] is False
    # All baselines that could be compared with the record are bitwise the record.
    assert all(t.reproduced for t in made.trials if t.reproduced is not None)
    again = whyspike.diagnose(tmp_path / "run")
    assert again.answer == made.answer
    assert [v.cause for v in again.verdicts] == [v.cause for v in made.verdicts]


def test_healthy_twin_is_healthy() -> None:
    made = prove(lambda seed=0: make(seed, loss_fn=once, lr=0.075), path=None, verify_cures=False)
    assert made.answer.status == "healthy"


def test_an_experiment_inside_the_loop_leaves_the_training_bitwise_as_it_was(tmp_path: Path) -> None:
    def train(path: Path | None) -> list[torch.Tensor]:
        training = make()
        model, optimizer = training.model, training.optimizer
        if path is None:
            for _ in range(8):
                for batch in training.loader:
                    optimizer.zero_grad()
                    twice(model, batch).backward()
                    optimizer.step()
            return [p.detach().clone() for p in model.parameters()]
        with whyspike.watch(model, optimizer, loss_fn=twice, path=path) as rec:
            for epoch in range(8):
                for batch in rec.batches(training.loader):
                    optimizer.zero_grad()
                    loss = twice(model, batch)
                    loss.backward()
                    optimizer.step()
                    rec.step(loss)
                if epoch == 5:
                    found = rec.diagnose(prove=True)
                    assert found.verdicts[0].cause == "double-averaged-loss"
        return [p.detach().clone() for p in model.parameters()]

    with_us, without = train(tmp_path / "run"), train(None)
    assert all(torch.equal(a, b) for a, b in zip(with_us, without, strict=True))
    assert len(whyspike.diagnose(tmp_path / "run").run.signals) > 1
    assert whyspike.diagnose(tmp_path / "run").run.steps == 8 * 17


def test_without_loss_fn_it_suspects_and_says_what_is_missing(tmp_path: Path) -> None:
    training = make()
    model, optimizer = training.model, training.optimizer
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(10):
            for batch in rec.batches(training.loader):
                optimizer.zero_grad()
                loss = twice(model, batch)
                loss.backward()
                optimizer.step()
                rec.step(loss)
        made = rec.diagnose(prove=True)
    assert (made.verdicts[0].cause, made.verdicts[0].outcome) == ("double-averaged-loss", "likely")
    assert any("loss_fn=loss_fn" in text for text in made.missing)
    assert "replay would prove it" in made.answer.sentence


def test_a_loss_that_raises_is_a_sentence() -> None:
    def broken(model: nn.Module, batch: object) -> torch.Tensor:
        raise KeyError("labels")

    with pytest.raises(BadTraining, match=r"KeyError.*labels"):
        prove(lambda: make(loss_fn=broken), path=None)


def test_a_vector_loss_is_a_sentence() -> None:
    with pytest.raises(BadTraining, match="scalar"):
        prove(lambda: make(loss_fn=lambda m, b: (m(b[0]) - b[1]) ** 2))


def test_a_model_without_parameters_is_a_sentence() -> None:
    with pytest.raises(BadTraining, match="no parameter that requires a gradient"):
        whyspike.Training(model=nn.ReLU(), optimizer=None, loss_fn=once, loader=[], epochs=1)  # type: ignore[arg-type]


def test_an_empty_loader_is_a_sentence() -> None:
    training = make()
    training.loader = []
    with pytest.raises(BadTraining, match="no batch"):
        prove(training)


@pytest.mark.parametrize("fill", [None, b"", b"hello"])
def test_a_foreign_folder_is_a_sentence(tmp_path: Path, fill: bytes | None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if fill is not None:
        (folder / "run.json").write_bytes(fill)
    with pytest.raises(UnreadableRun):
        whyspike.diagnose(folder)


def test_a_run_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRun, match="does not exist"):
        whyspike.diagnose(tmp_path / "nothing")


@pytest.mark.slow
def test_the_first_demo() -> None:
    from whyspike.case import find_case

    made = demo(find_case("double-averaged-loss"))
    assert str(made).startswith("confirmed[double-averaged-loss]")
    outcomes = {v.cause: v.outcome for v in made.verdicts}
    assert outcomes["momentum-carry-over"] == "confirmed"
    assert made.events[0].period == 33
