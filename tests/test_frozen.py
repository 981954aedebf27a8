"""Looking at a network leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whyspike import numpy_rng
from whyspike.errors import BadTraining
from whyspike.frozen import frozen, loss_value, restore_rng, rng_state

torch.set_num_threads(1)


class Restless(nn.Module):
    """Everything that a forward pass may change: batch statistics, a counter in eval mode too, a replaced buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))
        self.register_buffer("maybe", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.cache = torch.randn(3)
        self.register_buffer("new", torch.ones(1))
        return self.layers(x) + self.cache.sum() + np.random.rand() + random.random()  # noqa: NPY002


def everything(model: nn.Module) -> list[object]:
    state = rng_state()
    numpy_state = state["numpy"]["state"]
    return [
        [(name, m.training, list(m._buffers)) for name, m in model.named_modules()],
        {k: v.clone().tolist() for k, v in model.named_buffers()},
        {k: id(v) for k, v in model.named_buffers()},
        state["torch"].tolist(),
        state["python"],
        numpy_state["key"].tolist(),
        numpy_state["pos"],
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("train_mode", [False, True, None])
@pytest.mark.parametrize("seed", [None, 3])
def test_modes_buffers_and_generators_are_restored(train_mode: bool, seed: int | None) -> None:
    model = Restless()
    model.layers[1].eval()  # a frozen BatchNorm inside a training model
    model(torch.randn(5, 4))
    before = everything(model)
    with frozen(model, train_mode=train_mode, seed=seed):
        if train_mode is None:
            assert [(n, m.training, list(m._buffers)) for n, m in model.named_modules()] == before[0]
        else:
            assert all(m.training is train_mode for m in model.modules())
        out = model(torch.randn(5, 4))
        assert not out.requires_grad
        assert everything(model) != before
    assert everything(model) == before


def test_everything_is_restored_after_an_exception() -> None:
    model = Restless()
    before = everything(model)
    with pytest.raises(ZeroDivisionError), frozen(model, train_mode=True):  # noqa: PT012
        model(torch.randn(5, 4))
        raise ZeroDivisionError
    assert everything(model) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_model() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    before = {k: v.clone() for k, v in model.named_buffers()}
    with frozen(model, train_mode=True):
        model(torch.randn(5, 4))
        assert not torch.equal(dict(model.named_buffers())["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


def test_it_can_be_used_between_forward_and_backward() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    loss = model(torch.randn(8, 4)).square().mean()
    with frozen(model):
        model(torch.randn(8, 4))
    loss.backward()  # autograd raises if a buffer that it saved was written
    assert model[0].weight.grad is not None


def test_training_is_bitwise_the_same_with_frozen_looks_in_between() -> None:
    def train(look: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if look:
                with frozen(model, train_mode=True, seed=1):
                    model(torch.randn(8, 4))
            optimizer.step()
        return [t.clone() for t in model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_the_same_seed_gives_the_same_numbers() -> None:
    model = Restless()
    x = torch.randn(5, 4)
    found = []
    for _ in range(2):
        with frozen(model, train_mode=True, seed=7):
            found.append(model(x))
        torch.randn(1)
        np.random.rand()  # noqa: NPY002
        random.random()
    assert torch.equal(*found)


def test_rng_state_round_trip() -> None:
    state = rng_state()
    first = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    restore_rng(state)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == first  # noqa: NPY002


@given(st.lists(st.sampled_from(["normal", "uniform", "seed", "look", "back", "other generator"]), max_size=20))
@settings(deadline=None)
def test_the_state_of_numpy_is_what_numpy_says(moves: list[str]) -> None:
    kept = numpy_rng.state()
    try:
        for move in moves:
            if move == "normal":
                np.random.standard_normal()  # noqa: NPY002  (every second one is drawn without moving the generator)
            elif move == "uniform":
                np.random.rand()  # noqa: NPY002
            elif move == "seed":
                np.random.seed(3)  # noqa: NPY002
            elif move == "look":
                kept = numpy_rng.state()
            elif move == "other generator":
                np.random.set_bit_generator(np.random.MT19937(5))  # type: ignore[attr-defined]
            else:
                numpy_rng.restore(kept)
                assert plain(np.random.get_state(legacy=False)) == plain(kept)  # noqa: NPY002
            assert plain(numpy_rng.state()) == plain(np.random.get_state(legacy=False))  # noqa: NPY002
    finally:
        np.random.set_bit_generator(np.random.MT19937(0))  # type: ignore[attr-defined]


def plain(state: dict[str, Any]) -> list[object]:
    inner = state["state"]
    return [state["has_gauss"], state["gauss"], inner["pos"], inner["key"].tolist()]


def test_a_gradient_penalty_can_be_evaluated() -> None:
    model = nn.Linear(3, 1)

    def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().sum(1).mean()

    with frozen(model):
        value = loss_value(model, loss_fn, torch.randn(4, 3))
    assert value == pytest.approx(float(model.weight.detach().square().sum()), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("loss_fn", "says"),
    [
        (lambda m, b: m(b), r"tensor of shape \(4, 1\).*return loss.mean\(\)"),
        (lambda m, b: {"loss": m(b).mean()}, r'returned dict.*output\["loss"\]'),
        (lambda m, b: (m(b).mean(), 3), "returned tuple.*first element"),
        (lambda m, b: m(b).mean().item(), r"returned float.*before .item\(\)"),
        (lambda m, b: None, "returned NoneType.*the scalar tensor that you call backward"),
        (lambda m, b: m(b["x"]).mean(), "raised .*Error.*one batch of the loader"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused_in_words(loss_fn, says: str) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(BadTraining, match=says), frozen(model):
        loss_value(model, loss_fn, torch.randn(4, 3))
