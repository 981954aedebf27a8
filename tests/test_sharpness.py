"""Sharpness against the full Hessian of tiny networks, and the limits against simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whyspike.errors import NotReplayable
from whyspike.sharpness import measure, preconditioner, stability_limit

Batch = tuple[torch.Tensor, torch.Tensor]


def squared_error(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def tiny(seed: int, outputs: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def some_batch(seed: int, classes: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=draw).double()
    return x, torch.randint(classes, (16,), generator=draw) if classes else torch.sin(x.sum(1, keepdim=True))


def slow_curvature(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batch: Batch) -> float:
    """The largest eigenvalue of sqrt(D) H sqrt(D), D = lr / P, from the whole Hessian by numpy."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    gradients = torch.autograd.grad(loss_fn(model, batch), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [
        torch.cat([h.reshape(-1) for h in torch.autograd.grad(g, parameters, retain_graph=True)]).numpy() for g in flat
    ]
    d = np.concatenate(
        [
            (s if isinstance(s, torch.Tensor) else torch.full_like(p, s)).detach().reshape(-1).numpy()
            for p, s in zip(parameters, preconditioner(optimizer), strict=True)
        ]
    )
    hessian = np.stack(rows)
    return float(np.linalg.eigvalsh(np.sqrt(d)[:, None] * hessian * np.sqrt(d)[None, :])[-1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "amsgrad", "two groups"])
def test_it_is_the_largest_eigenvalue_of_the_full_hessian(seed: int, kind: str) -> None:
    outputs, loss_fn = (1, squared_error) if seed % 2 else (3, cross_entropy)
    model, batch = tiny(seed, outputs), some_batch(seed, 0 if seed % 2 else 3)
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "momentum": lambda: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=0.01),
        "amsgrad": lambda: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
        "two groups": lambda: torch.optim.Adam([{"params": parameters[:2], "lr": 0.03}, {"params": parameters[2:]}]),
    }[kind]()
    train(model, optimizer, loss_fn, batch, 20)
    found = measure(model, optimizer, loss_fn, batch, iterations=500, tolerance=1e-7)
    assert found.converged
    assert found.curvature == pytest.approx(slow_curvature(model, optimizer, loss_fn, batch), rel=1e-3)


def test_the_usual_tolerance_is_near_enough() -> None:
    errors = []
    for seed in range(8):
        model, batch = tiny(seed), some_batch(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        train(model, optimizer, squared_error, batch, 50)
        slow = slow_curvature(model, optimizer, squared_error, batch)
        errors.append(abs(measure(model, optimizer, squared_error, batch).curvature / slow - 1))
    assert max(errors) < 0.05


def test_negative_curvature_does_not_hide_the_largest_positive_one() -> None:
    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]).double())

        def forward(self) -> torch.Tensor:
            return (torch.tensor([-5.0, 2.0, 1.0]).double() * self.w**2).sum() / 2

    model = Saddle()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure(model, optimizer, lambda m, _: m(), torch.zeros(1))
    assert found.curvature == pytest.approx(0.2, rel=0.01)
    assert found.ratio == pytest.approx(0.1, rel=0.01)


LIMITS = [
    ("sgd", lambda p: torch.optim.SGD(p, lr=0.1), 2.0),
    ("heavy ball", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 3.8),
    ("dampened", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9), 38.0),
    ("nesterov", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8),
    ("adam", lambda p: torch.optim.Adam(p, lr=0.1), 38.0),
    ("adamw, beta1 = .8", lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.999)), 18.0),
]


@pytest.mark.parametrize(("name", "make", "limit"), LIMITS, ids=[name for name, _, _ in LIMITS])
def test_the_limits(name: str, make: Any, limit: float) -> None:
    assert stability_limit(make([nn.Parameter(torch.ones(1))])) == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize(("name", "make", "limit"), LIMITS, ids=[name for name, _, _ in LIMITS])
@pytest.mark.parametrize(("factor", "grows"), [(0.97, False), (1.03, True)])
def test_a_quadratic_is_unstable_exactly_above_the_limit(
    name: str, make: Any, limit: float, factor: float, grows: bool
) -> None:
    w = nn.Parameter(torch.tensor([1e-3]).double())
    optimizer = make([w])
    adam = "adam" in name
    group = optimizer.param_groups[0]
    if adam:
        group["eps"] = 0.0
        optimizer.state[w] = {"step": torch.tensor(1e6), "exp_avg": torch.zeros_like(w)}
    curvature = factor * limit / group["lr"]
    seen = []
    for _ in range(600):
        optimizer.zero_grad()
        (curvature * w**2 / 2).sum().backward()
        if adam:  # a second moment that stays at 1, so that P = 1
            optimizer.state[w]["exp_avg_sq"] = torch.ones_like(w)
        optimizer.step()
        seen.append(abs(float(w.detach())))
    assert (max(seen[-20:]) > 1e-3) is grows


def test_of_an_optimizer_whose_limit_is_not_known() -> None:
    model = tiny(0)
    with pytest.raises(NotReplayable, match="SGD, Adam and AdamW"):
        measure(model, torch.optim.Rprop(model.parameters()), squared_error, some_batch(0))


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    x, y = some_batch(0)
    batch = (x.float(), y.float())
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, squared_error, batch, 3)
    before = [t.clone() for t in (*model.state_dict().values(), *(p.grad for p in model.parameters()))]  # type: ignore[union-attr]
    generator = torch.get_rng_state()
    first, second = (measure(model, optimizer, squared_error, batch).curvature for _ in range(2))
    after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # type: ignore[arg-type]
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training


def test_an_unused_parameter_and_one_that_the_loss_is_linear_in() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.tensor(0.5)) for _ in range(3))

        def forward(self) -> torch.Tensor:
            return 3 * self.a**2 + self.b

    model = Odd()
    found = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, _: m(), torch.zeros(1))
    assert found.curvature == pytest.approx(0.6, rel=1e-3)
