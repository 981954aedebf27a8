"""What a loss does with probabilities, against losses written in every usual way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from whyspike.lossform import LossForms, clip_of, double_softmax_floor

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Z = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(5, (16,), generator=torch.Generator().manual_seed(1))
BITS = torch.randint(2, (16, 5), generator=torch.Generator().manual_seed(2)).float()
ROWS = torch.arange(16)

STABLE: list[tuple[str, Loss]] = [
    ("cross_entropy", F.cross_entropy),
    ("log_softmax and nll", lambda z, y: F.nll_loss(F.log_softmax(z, 1), y)),
    ("with logits", lambda z, y: F.binary_cross_entropy_with_logits(z, BITS)),
    ("logsigmoid", lambda z, y: -(BITS * F.logsigmoid(z) + (1 - BITS) * F.logsigmoid(-z)).mean()),
    ("logsumexp", lambda z, y: (torch.logsumexp(z, 1) - z[ROWS, y]).mean()),
    ("a softmax that is not logged", lambda z, y: (torch.softmax(z, 1) * z).sum(1).mean()),
]
UNSTABLE: list[tuple[str, str, Loss, Loss]] = [
    ("log of softmax", "log of softmax", lambda z, y: -torch.log(torch.softmax(z, 1))[ROWS, y].mean(), STABLE[0][1]),
    ("picked before the log", "log of softmax", lambda z, y: -z.softmax(1)[ROWS, y].log().mean(), STABLE[0][1]),
    ("gathered", "log of softmax", lambda z, y: -F.softmax(z, dim=1).gather(1, y[:, None]).log().mean(), STABLE[0][1]),
    (
        "one-hot",
        "log of softmax",
        lambda z, y: -(F.one_hot(y, 5) * torch.log(z.softmax(-1))).sum(1).mean(),
        STABLE[0][1],
    ),
    ("nll of log", "log of softmax", lambda z, y: F.nll_loss(torch.log(torch.softmax(z, 1)), y), STABLE[0][1]),
    ("clipped", "log of softmax", lambda z, y: -torch.log(z.softmax(1).clamp(1e-7, 1))[ROWS, y].mean(), STABLE[0][1]),
    ("with an epsilon", "log of softmax", lambda z, y: -torch.log(z.softmax(1) + 1e-12)[ROWS, y].mean(), STABLE[0][1]),
    ("double softmax", "softmax of softmax", lambda z, y: F.cross_entropy(z.softmax(1), y), STABLE[0][1]),
    ("double with nll", "softmax of softmax", lambda z, y: F.nll_loss(F.log_softmax(z.softmax(1), 1), y), STABLE[0][1]),
    ("bce", "log of sigmoid", lambda z, y: F.binary_cross_entropy(torch.sigmoid(z), BITS), STABLE[2][1]),
    (
        "bce by hand",
        "log of sigmoid",
        lambda z, y: -(BITS * torch.log(z.sigmoid()) + (1 - BITS) * torch.log(1 - z.sigmoid())).mean(),
        STABLE[2][1],
    ),
]


@pytest.mark.parametrize(("name", "loss"), STABLE, ids=[s[0] for s in STABLE])
def test_a_stable_loss_is_left_alone(name: str, loss: Loss) -> None:
    plain = loss(Z, Y)
    with LossForms(stable=True) as seen:
        again = loss(Z, Y)
    assert seen.forms == []
    assert torch.equal(plain, again)
    with LossForms(certain=True):
        assert torch.isfinite(loss(Z, Y))


@pytest.mark.parametrize(("name", "form", "loss", "right"), UNSTABLE, ids=[u[0] for u in UNSTABLE])
def test_an_unstable_one_is_recognised_and_replaced(name: str, form: str, loss: Loss, right: Loss) -> None:
    plain = loss(Z, Y)
    with LossForms() as seen:
        watched = loss(Z, Y)
    assert seen.forms == [form]
    assert torch.equal(plain, watched)
    far = 200 * Z.clone().requires_grad_()
    far.retain_grad()
    with LossForms(stable=True):
        made = loss(far, Y)
    assert float(made.detach()) == pytest.approx(float(right(200 * Z, Y)), rel=1e-5)
    made.backward()
    assert far.grad is not None
    assert bool(torch.isfinite(far.grad).all())


def test_a_network_that_is_certain_of_itself_shows_what_happens_then() -> None:
    wrong = (Z.argmax(1) + 1) % 5
    for name, _, loss, _ in UNSTABLE:
        with LossForms(certain=True):
            found = float(loss(Z, wrong))
        if name in ("clipped", "with an epsilon"):
            assert 10 < found < 30
        elif name.startswith("double"):
            assert found < 2
        elif name == "bce":
            assert 1 < found < 100
        else:
            assert math.isinf(found) or math.isnan(found)


@pytest.mark.parametrize(("clip", "value"), [(1e-7, 16.118), (1e-12, 27.631), (1e-15, 34.539)])
def test_the_values_that_a_clip_leaves(clip: float, value: float) -> None:
    z = torch.tensor([[200.0, -200.0]], dtype=torch.float64)
    stuck = float(-torch.log(z.softmax(1).clamp(clip, 1))[0, 1])
    assert stuck == pytest.approx(value, abs=1e-3)
    assert clip_of(stuck) is not None
    assert clip_of(stuck + 0.01) is None


def test_the_clamp_of_bce() -> None:
    stuck = float(F.binary_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0])))
    assert clip_of(stuck) == "the clamp of torch.nn.BCELoss"


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_floor_of_a_double_softmax(classes: int) -> None:
    sure = torch.zeros(1, classes)
    sure[0, 0] = 1.0
    assert double_softmax_floor(classes) == pytest.approx(float(F.cross_entropy(sure, torch.tensor([0]))), rel=1e-6)


def test_of_modules() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Softmax(1))
    with LossForms() as seen:
        torch.nn.CrossEntropyLoss()(model(Z), Y)
    assert seen.forms == ["softmax of softmax"]
    assert seen.classes == 5
