"""The first value that is not finite is found where it was put: 21 faults, each at two places, and in the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.firstbad import sample_of
from whyspike.nonfinite import locate
from whyspike.record import watch

Batch = tuple[torch.Tensor, torch.Tensor]


def data(n: int = 12) -> Batch:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


class Faulty(nn.Module):
    """Does something to what passes at one place of a small network."""

    def __init__(self, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fault(x)


def network(fault: Callable[[torch.Tensor], torch.Tensor], at: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    layers.insert(at, Faulty(fault))
    return nn.Sequential(*layers)


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


# each: the fault, the operation that makes the first value that is not finite, and where
def _zero_row(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(len(x), 1)
    mask[4] = 0
    return x * mask


def _norm_of_zero(x: torch.Tensor) -> torch.Tensor:  # sqrt has no gradient at 0
    return x * (_zero_row(x) ** 2).sum(1, keepdim=True).sqrt()


def _masked(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool), float("-inf")), 1)


FAULTS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str, str]] = [
    ("log of a negative number", lambda x: torch.log(x - 10), "log", "forward"),
    ("log of zero", lambda x: torch.log(_zero_row(x).abs()), "log", "forward"),
    ("log1p below -1", lambda x: torch.log1p(-2 - x.abs()), "log1p", "forward"),
    ("division by zero", lambda x: x / _zero_row(torch.ones_like(x)), "div", "forward"),
    ("exp overflows", lambda x: torch.exp(200 + x), "exp", "forward"),
    ("sqrt of a negative number", lambda x: torch.sqrt(x - 10), "sqrt", "forward"),
    ("power of a negative number", lambda x: torch.pow(x - 10, 0.5), "pow", "forward"),
    ("a product overflows", lambda x: (x + 3) * 1e38 * 1e38, "mul", "forward"),
    ("a sum overflows", lambda x: x + 3e38 + 3e38, "add", "forward"),
    (
        "a matrix product overflows",
        lambda x: (x * 1e30) @ (torch.ones(x.shape[1], x.shape[1]) * 1e30),
        "matmul",
        "forward",
    ),
    ("the mean of nothing", lambda x: x + x[:0].mean(), "mean", "forward"),
    ("acos beyond 1", lambda x: torch.acos(x + 10), "acos", "forward"),
    ("reciprocal of zero", lambda x: torch.reciprocal(_zero_row(x)), "reciprocal", "forward"),
    ("rsqrt of zero", lambda x: torch.rsqrt(_zero_row(x).abs()), "rsqrt", "forward"),
    ("softmax of a row that is masked altogether", _masked, "softmax", "forward"),
    ("half precision overflows", lambda x: (x.abs() + 1).mul(7e4).half().float(), "half", "forward"),
    ("an infinity that is taken back", lambda x: torch.exp(100 + x.abs()) * 0, "exp", "forward"),
    ("sqrt has no gradient at zero", _norm_of_zero, "sqrt", "backward"),
    (
        "a root has none either",
        lambda x: x * torch.pow((_zero_row(x) ** 2).sum(1, keepdim=True), 0.5),
        "pow",
        "backward",
    ),
    ("asin has none at 1", lambda x: x + torch.asin(0 * x + 1), "asin", "backward"),
    ("where hides the value, not its gradient", lambda x: torch.where(x > 0, x, (0 * x).sqrt()), "sqrt", "backward"),
]


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(("name", "fault", "operation", "place"), FAULTS, ids=[f[0] for f in FAULTS])
def test_the_first_one_is_found_where_it_is_made(name: str, fault: Any, operation: str, place: str, at: int) -> None:
    found = locate(network(fault, at), cross_entropy, data())
    assert found is not None
    assert (found.place, found.module, found.kind) == (place, str(at), "Faulty")
    assert found.operation == operation


def test_a_healthy_network_has_none() -> None:
    assert locate(network(lambda x: x, 2), cross_entropy, data()) is None


def test_in_the_loss_function() -> None:
    def by_hand(model: nn.Module, batch: Batch) -> torch.Tensor:
        p = torch.softmax(model(batch[0]) * 1e3, 1)
        return -torch.log(p[torch.arange(len(p)), batch[1]]).mean()

    found = locate(network(lambda x: x, 2), by_hand, data())
    assert found is not None
    assert (found.place, found.module, found.operation) == ("forward", "", "log")
    assert found.smallest_input == 0.0
    assert found.words == "log in the loss function, forward pass"


def test_in_the_batch_itself() -> None:
    x, y = data()
    x[5, 2] = float("nan")
    found = locate(network(lambda x: x, 2), cross_entropy, (x, y))
    assert found is not None
    assert (found.place, found.rows, found.value) == ("data", (5,), "nan")


def test_the_rows_that_hold_it() -> None:
    found = locate(network(lambda x: torch.log(_zero_row(x).abs()), 1), cross_entropy, data())
    assert found is not None
    assert found.rows == (4,)


def test_the_sample_where_the_operation_mixes_them() -> None:
    x, y = data()
    x[7] = 1e25

    def squares(model: nn.Module, batch: Batch) -> torch.Tensor:
        return (model(batch[0]) ** 2).sum().sqrt() + 0 * batch[1].sum()

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    found = locate(model, squares, (x, y))
    assert found is not None
    assert found.operation in ("pow", "sum")
    assert sample_of(model, squares, (x, y)) == (7,)


def test_the_rows_of_a_large_batch_are_those_that_are_not_finite_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 6, generator=g), torch.randint(3, (300,), generator=g)
    bad = (7, 64, 65, 299)
    x[list(bad)] = float("inf")
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    alone = [k for k in range(300) if locate(model, cross_entropy, (x[[k]], y[[k]]), n=1) is not None]
    assert sample_of(model, cross_entropy, (x, y)) == tuple(alone) == bad
    x[:] = float("inf")
    assert sample_of(model, cross_entropy, (x, y)) == ()


def test_weights_that_were_not_finite_before() -> None:
    model = network(lambda x: x, 2)
    with torch.no_grad():
        model[3].weight[0, 0] = float("inf")  # type: ignore[index, union-attr, operator]
    found = locate(model, cross_entropy, data())
    assert found is not None
    assert (found.place, found.module, found.kind) == ("before", "3", "Linear")


def test_a_sequence_of_operations_inside_one_module_is_told_apart() -> None:
    class Norm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            centred = x - x.mean(1, keepdim=True)
            return centred / (centred.abs().sum(1, keepdim=True) - centred.abs().sum(1, keepdim=True))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Norm(), nn.Linear(8, 3))
    found = locate(model, cross_entropy, data())
    assert found is not None
    assert (found.module, found.kind, found.operation) == ("1", "Norm", "div")


def test_what_is_written_in_place_is_looked_at_before() -> None:
    found = locate(network(lambda x: x.clone().div_((0 * x).norm(dim=1, keepdim=True)), 1), cross_entropy, data())
    assert found is not None
    assert (found.module, found.operation) == ("1", "div")


def test_a_function_of_the_users_own_is_known_by_its_name() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad / 0 * 0

    found = locate(network(Broken.apply, 3), cross_entropy, data())  # type: ignore[arg-type]
    assert found is not None
    assert (found.place, found.module, found.operation) == ("backward", "3", "Broken")


def test_inside_a_checkpoint_nothing_is_saved_by_the_one_who_looks() -> None:
    from torch.utils.checkpoint import checkpoint

    def fault(x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(lambda z: (0 * z).sqrt(), x, use_reentrant=False)  # type: ignore[operator]

    found = locate(network(fault, 3), cross_entropy, data())
    assert found is not None
    assert (found.place, found.module, found.operation) == ("backward", "3", "sqrt")


@pytest.mark.parametrize("at", [0, 5])
def test_the_first_steps_of_short_epochs_are_replayed_from_the_start(at: int, tmp_path: Path) -> None:
    class Late(Faulty):
        clock: torch.Tensor

        def __init__(self) -> None:
            super().__init__(lambda x: x + (0 * x).sqrt())
            self.register_buffer("clock", torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = int(self.clock)
            self.clock += self.training
            return self.fault(x) if now == at and self.training else x

    model = network(lambda x: x, 2)
    model[2] = Late()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data(72)), batch_size=8, shuffle=True, generator=g)
    with watch(model, optimizer, loss_fn=cross_entropy, path=tmp_path / "run") as rec:
        for _ in range(4):
            for batch in rec.batches(loader):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                rec.step(loss)
    said = rec.diagnose(prove=True).answer.sentence
    assert f"inf at step {at}, made by sqrt in module 2 (Late), backward pass" in said
