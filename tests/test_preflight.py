"""`whyspike check`: what is found before training, what is left untouched, and what is said about bad input."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from whyspike import Training
from whyspike.errors import BadTraining
from whyspike.frozen import rng_state
from whyspike.preflight import check, measure_setup

torch.set_num_threads(1)


def mean_ce(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(n: int = 66) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g))


def make(loader: Any = None, loss_fn: Any = mean_ce, **kw: Any) -> Training:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data(), batch_size=16, shuffle=True) if loader is None else loader
    return Training(model=model, optimizer=optimizer, loss_fn=loss_fn, loader=loader, epochs=2, **kw)


def ids(found: Any) -> list[str]:
    return [f.cause for f in found.findings]


def test_a_double_average_is_a_finding_and_its_twin_is_none() -> None:
    found = check(lambda: make(loss_fn=lambda m, b: mean_ce(m, b) / len(b[1])))
    assert ids(found) == ["double-averaged-loss"]
    assert "-1.000" in found.findings[0].observed
    assert ids(check(make)) == []


def test_a_sum_is_a_finding() -> None:
    found = check(make(loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum")))
    assert ids(found) == ["sum-reduction"]


def test_a_small_last_batch_is_a_note() -> None:
    assert "small-last-batch" in [n.id for n in check(make()).notes]
    assert "small-last-batch" not in [n.id for n in check(make(DataLoader(data(64), batch_size=16))).notes]


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "accumulate", "expected"),
    [
        (66, 16, False, 1, (66, 16, 2)),
        (64, 16, False, 1, (64, 16, 16)),
        (66, 16, True, 1, (64, 16, 16)),
        (66, 16, False, 2, (66, 32, 2)),
        (90, 16, False, 2, (90, 32, 26)),
        (10, 16, False, 1, (10, 16, 10)),
    ],
)
def test_sizes_are_those_of_the_loader_gone_through(
    n: int, batch_size: int, drop_last: bool, accumulate: int, expected: tuple[int, int, int]
) -> None:
    loader = DataLoader(data(n), batch_size=batch_size, drop_last=drop_last)
    for given in (loader, list(loader)):
        setup = measure_setup(make(given, accumulate=accumulate))
        found = (setup.dataset_size, setup.batch_size, setup.last_batch)
        if given is loader or n > batch_size:  # a list does not say that its one batch is short
            assert found == expected
    steps = [len(b[0]) for b in loader]
    assert sum(steps[-((len(steps) - 1) % accumulate + 1) :]) == expected[2]


def test_facts_of_the_setup() -> None:
    setup = measure_setup(make(DataLoader(data(), batch_size=16, shuffle=True, drop_last=True)))
    assert (setup.shuffle, setup.drop_last, setup.accumulate) == (True, True, 1)
    assert setup.facts["optimizer"] == "SGD"
    assert setup.facts["momentum"] == 0.9
    assert setup.facts["batch_norm"]
    assert setup.facts["dropout"]
    assert setup.exponent is not None
    assert setup.exponent.alpha == pytest.approx(0, abs=0.01)
    assert measure_setup(make(DataLoader(data(), batch_size=16))).shuffle is False


class Augmented(TensorDataset):
    def __getitem__(self, i: Any) -> Any:
        x, y = super().__getitem__(i)
        return x + torch.randn(6) + np.random.rand() + random.random(), y  # noqa: NPY002


def test_nothing_is_left_behind() -> None:
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(Augmented(*data().tensors), batch_size=16, shuffle=True, generator=generator)
    training = make(loader)
    training.model.get_submodule("1").eval()
    weights = {k: v.clone() for k, v in training.model.state_dict().items()}
    modes = [m.training for m in training.model.modules()]
    random_state, own = rng_state(), generator.get_state()
    check(training)
    now = rng_state()
    assert torch.equal(now["torch"], random_state["torch"])
    assert now["python"] == random_state["python"]
    assert np.array_equal(now["numpy"]["state"]["key"], random_state["numpy"]["state"]["key"])
    assert now["numpy"]["state"]["pos"] == random_state["numpy"]["state"]["pos"]
    assert torch.equal(generator.get_state(), own)
    assert all(torch.equal(v, weights[k]) for k, v in training.model.state_dict().items())
    assert [m.training for m in training.model.modules()] == modes
    assert all(p.grad is None for p in training.model.parameters())


def test_the_batches_of_the_training_are_the_same_after_a_check() -> None:
    def batches(checked: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        training = make()
        if checked:
            check(training)
        return [b[0] for b in training.loader]

    assert all(torch.equal(a, b) for a, b in zip(batches(False), batches(True), strict=True))


def test_workers_are_not_started() -> None:
    loader = DataLoader(data(), batch_size=16, num_workers=2, persistent_workers=True)
    check(make(loader))
    assert loader._iterator is None


def test_a_subset_is_read_as_torch_reads_it() -> None:
    setup = measure_setup(make(DataLoader(Subset(data(), range(40)), batch_size=16)))
    assert (setup.dataset_size, setup.last_batch) == (40, 8)


def test_ragged_batches_are_built_by_the_loaders_own_collate() -> None:
    items = [(torch.randn(6), torch.rand(i % 3 + 1, 3)) for i in range(40)]

    def collate(rows: list[Any]) -> Any:
        return (
            torch.stack([x for x, _ in rows]),
            torch.cat([y for _, y in rows]),
            torch.tensor([len(y) for _, y in rows]),
        )

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        x, boxes, counts = batch
        return (model(x).repeat_interleave(counts, 0) - boxes).abs().sum() / len(boxes) / len(x)

    found = check(make(DataLoader(items, batch_size=16, collate_fn=collate), loss_fn))  # type: ignore[arg-type]
    assert ids(found) == ["double-averaged-loss"]


class TrainOnly(nn.Module):
    """As torchvision's detectors: a loss in train mode, boxes in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        scores = self.layer(x)
        return {"loss": F.cross_entropy(scores, y)} if self.training else [{"boxes": scores}]


def test_a_model_that_gives_a_loss_in_train_mode_only() -> None:
    model = TrainOnly()
    training = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=lambda m, b: m(*b)["loss"] / len(b[0]),
        loader=DataLoader(data(), batch_size=16),
        epochs=1,
    )
    assert ids(check(training)) == ["double-averaged-loss"]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(data())


class Lengthless:
    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(data(), batch_size=16)


@pytest.mark.parametrize("loader", [DataLoader(Stream(), batch_size=16), Lengthless()])
def test_a_loader_without_length_is_checked_as_far_as_it_goes(loader: Any) -> None:
    found = check(make(loader, loss_fn=lambda m, b: mean_ce(m, b) / len(b[1])))
    assert ids(found) == ["double-averaged-loss"]
    (note,) = [n for n in found.notes if n.id == "last-batch-unknown"]
    assert "does not say how many samples" in note.text
    assert "give a torch DataLoader" in note.text
    assert check(make(loader)).findings == ()


def test_an_exponent_that_cannot_be_measured_is_a_note() -> None:
    found = check(make(loss_fn=lambda m, b: mean_ce(m, b) * 0))
    (note,) = [n for n in found.notes if n.id == "exponent-unknown"]
    assert "other than zero" in note.text


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ([], "list.*yields no batch.*at least one"),
        (DataLoader(data(10), batch_size=16, drop_last=True), "yields no batch.*drop_last"),
        (iter(DataLoader(data(), batch_size=16)), "gone through only once.*give the DataLoader itself"),
        (7, "of type int, which cannot be iterated"),
        (DataLoader(Subset(data(), [1000]), batch_size=4), "drawing a batch .*raised IndexError"),
    ],
)
def test_bad_loaders(loader: Any, says: str) -> None:
    with pytest.raises(BadTraining, match=says):
        check(make(loader))


@pytest.mark.parametrize(
    ("loss_fn", "says"),
    [
        (lambda m, b: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), r"shape \(16,\).*return loss.mean\(\)"),
        (lambda m, b: mean_ce(m, b).item(), r"returned float.*before .item\(\)"),
        (lambda m, b: mean_ce(m, b).detach(), "does not depend on the parameters"),
    ],
)
def test_bad_losses(loss_fn: Any, says: str) -> None:
    with pytest.raises(BadTraining, match=says):
        check(make(loss_fn=loss_fn))


def test_a_factory_that_builds_nothing() -> None:
    with pytest.raises(BadTraining, match=r"returned NoneType; it must return a whyspike.Training"):
        check(lambda: None)  # type: ignore[arg-type, return-value]


def test_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    check(make, progress=lambda words, done: told.append((words, done)))
    assert told[0][1] == 0.0
    assert [done for _, done in told] == sorted(done for _, done in told)


# --------------------------------------------------------------------------- what evaluate leaves behind


def leaves(*what: str) -> Any:
    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()
        if "weights" in what:
            with torch.no_grad():
                next(model.parameters()).mul_(0.5)
        if "modes" not in what:
            model.train()
        return {"val": torch.rand(()).item()}

    return evaluate


@pytest.mark.parametrize("what", [(), ("weights",), ("modes",), ("weights", "modes")])
def test_what_one_evaluation_leaves_behind_is_a_finding(what: tuple[str, ...]) -> None:
    training = make(evaluate=leaves(*what))
    before = [p.detach().clone() for p in training.model.parameters()], rng_state()["torch"]
    assert measure_setup(training).evaluation == what
    assert ids(check(training)) == (["eval-side-effects"] if what else [])
    after = list(training.model.parameters()), rng_state()["torch"]
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert torch.equal(before[1], after[1])
    assert all(m.training for m in training.model.modules())


def test_an_evaluation_that_fails_by_itself_is_not_looked_at() -> None:
    def broken(model: nn.Module) -> dict[str, float]:
        raise RuntimeError("no data")

    assert measure_setup(make(evaluate=broken)).evaluation is None
    assert measure_setup(make()).evaluation is None
