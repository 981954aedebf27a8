"""Scale x weights x data: each fault shows in its own factor, and the product closes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whyspike.attribute import attribute, canonical_loss, per_sample
from whyspike.errors import BadTraining, NotReplayable
from whyspike.types import Attribution

torch.set_num_threads(1)

N, B, CLASSES = 512, 32, 4
Batch = tuple[torch.Tensor, torch.Tensor]


def mean_ce(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def twice(model: nn.Module, batch: Batch) -> torch.Tensor:
    return mean_ce(model, batch) / len(batch[1])


@dataclass
class World:
    """A half-trained classifier, its data, and its state now (the reference)."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    reference: dict[str, torch.Tensor] = field(default_factory=dict)

    def batch(self, rows: Any) -> Batch:
        return self.x[rows], self.y[rows]

    def draw(self, rng: np.random.Generator, n: int) -> Batch:
        return self.batch(rng.choice(N, n, replace=False))

    def restore(self) -> None:
        self.model.load_state_dict(self.reference)

    def split(
        self,
        batch: Batch,
        reported: float,
        loss_fn: Any = mean_ce,
        restore_event: Callable[[], None] | None = None,
        **kw: Any,
    ) -> Attribution:
        return attribute(
            self.model,
            loss_fn,
            event_batch=batch,
            reported=reported,
            reference_batches=self.draw,
            batch_size=B,
            restore_reference=self.restore,
            restore_event=restore_event or self.restore,
            **kw,
        )

    def typical(self, n: int, loss_fn: Any = mean_ce, draws: int = 64, seed: int = 0) -> float:
        rng = np.random.default_rng(seed)
        rng.integers(n, size=(200, n))  # the rows of the bootstrap are drawn first
        return float(np.mean([canonical_loss(self.model, loss_fn, self.draw(rng, n), B) for _ in range(draws)]))


def make(*, dropout: float = 0.0, seed: int = 0) -> World:
    torch.manual_seed(seed)
    centres = torch.randn(CLASSES, 10)
    y = torch.randint(CLASSES, (N,))
    x = centres[y] + 1.5 * torch.randn(N, 10)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        rows = torch.randint(N, (B,))
        loss = mean_ce(model, (x[rows], y[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return World(model, x, y, {k: v.clone() for k, v in model.state_dict().items()})


@pytest.fixture(scope="module")
def world() -> World:
    return make()


def covers(found: Attribution, name: str, value: float = 1.0) -> bool:
    low, high = found.interval[name]
    return low <= value <= high


def logged(world: World, batch: Batch, loss_fn: Any = mean_ce) -> float:
    with torch.no_grad():
        return float(loss_fn(world.model, batch))


@pytest.mark.parametrize("n", [2, 5, 32])
@pytest.mark.parametrize("loss_fn", [mean_ce, twice])
def test_the_product_closes(world: World, n: int, loss_fn: Any) -> None:
    world.restore()
    batch = world.batch(list(range(n)))
    reported = logged(world, batch, loss_fn) * 3.7
    found = world.split(batch, reported, loss_fn)
    world.restore()
    assert found.scale * found.weights * found.data == pytest.approx(reported / world.typical(n, loss_fn), rel=1e-9)
    for name in ("scale", "weights", "data"):
        low, high = found.interval[name]
        assert low <= getattr(found, name) <= high


def test_a_loss_times_eight_is_scale_alone(world: World) -> None:
    world.restore()
    batch = world.batch(list(range(100, 132)))
    found = world.split(batch, 8 * logged(world, batch))
    assert found.scale == pytest.approx(8, rel=1e-5)
    assert found.interval["scale"] == pytest.approx((8, 8), rel=1e-4)
    assert found.weights == pytest.approx(1)
    assert covers(found, "data")


@pytest.mark.parametrize("n", [1, 2, 5, 24])
def test_a_double_average_on_a_small_batch_is_scale_by_nominal_over_actual_size(world: World, n: int) -> None:
    world.restore()
    batch = world.batch(list(range(200, 200 + n)))
    found = world.split(batch, logged(world, batch, twice), twice)
    assert found.scale == pytest.approx(B / n, rel=1e-4)
    assert not covers(found, "scale")
    assert covers(found, "data")


def test_corrupted_inputs_are_data_alone(world: World) -> None:
    world.restore()
    x, y = world.batch(list(range(32)))
    batch = (torch.cat([x[:4] * -15, x[4:]]), y)
    found = world.split(batch, logged(world, batch))
    assert found.data > 2
    assert found.interval["data"][0] > 1.5
    assert found.scale == pytest.approx(1, abs=1e-5)
    assert found.weights == pytest.approx(1)


def test_damaged_weights_are_weights_alone(world: World) -> None:
    def damage() -> None:
        world.restore()
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in world.model.parameters():
                p += 0.8 * torch.randn(p.shape, generator=g)

    damage()
    batch = world.batch(list(range(64, 96)))
    found = world.split(batch, logged(world, batch), restore_event=damage)
    assert found.weights > 2
    assert found.interval["weights"][0] > 1.5
    assert found.scale == pytest.approx(1, abs=1e-5)
    assert covers(found, "data")


@pytest.mark.parametrize("n", [2, 32])
def test_a_healthy_step_is_one_in_every_factor(world: World, n: int) -> None:
    world.restore()
    inside = 0
    for seed in range(40):
        rows = np.random.default_rng(1000 + seed).choice(N, n, replace=False)
        batch = world.batch(rows)
        found = world.split(batch, logged(world, batch), n_boot=100, seed=seed)
        assert found.scale == pytest.approx(1, abs=1e-4)
        assert found.weights == pytest.approx(1)
        inside += covers(found, "data")
    assert inside >= 34  # nominal 38 of 40; 33 or fewer has a chance of .2 % at .93


def test_dropout_and_batch_statistics_are_not_taken_for_scale() -> None:
    world = make(dropout=0.5, seed=1)
    batch, reported, inside = world.batch([0]), 1.0, 0
    for seed in range(10):
        batch = world.batch(np.random.default_rng(seed).choice(N, B, replace=False))
        world.model.train()
        torch.manual_seed(seed)
        reported = logged(world, batch)
        found = world.split(batch, reported, seed=seed)
        assert found.scale == pytest.approx(1, abs=0.5)
        inside += covers(found, "scale")
        assert world.model.training
    assert inside >= 8
    # What it would be in eval mode: this test can tell the two apart.
    assert world.split(batch, reported, train_mode=False).scale > 1.3


def test_the_network_is_left_at_the_event(world: World) -> None:
    first, norm = world.model.get_submodule("0"), world.model.get_submodule("1")

    def event() -> None:
        world.restore()
        with torch.no_grad():
            first.get_parameter("weight").mul_(1.5)
            norm.get_buffer("running_mean").add_(1)

    event()
    state = {k: v.clone() for k, v in world.model.state_dict().items()}
    world.restore()
    generator = torch.get_rng_state()
    world.split(world.batch([0, 1]), 1.0, restore_event=event)
    assert all(torch.equal(v, state[k]) for k, v in world.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_it_is_quick_on_a_small_net(world: World) -> None:
    world.restore()
    batch = world.batch(list(range(32)))
    world.split(batch, 1.0, n_boot=20)
    begun = time.process_time()
    world.split(batch, 1.0)
    assert time.process_time() - begun < 2  # .4 s on one quiet core


@pytest.mark.parametrize("n", [3, 5, 24, 40])
@pytest.mark.parametrize(
    ("loss_fn", "power"), [(mean_ce, 0), (twice, -1), (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), 1)]
)
def test_a_size_that_does_not_divide_is_interpolated_exactly(world: World, n: int, loss_fn: Any, power: int) -> None:
    world.restore()
    batch = world.batch(list(range(n)))
    expected = logged(world, batch) * B**power
    assert canonical_loss(world.model, loss_fn, batch, B) == pytest.approx(expected, rel=1e-4)


def test_per_sample_losses_average_to_the_loss_of_a_full_batch(world: World) -> None:
    world.restore()
    batch = world.batch(list(range(10)))
    found = per_sample(world.model, twice, batch, B)
    obvious = F.cross_entropy(world.model(batch[0]), batch[1], reduction="none").detach().numpy() / B
    assert found == pytest.approx(obvious, rel=1e-4)
    assert found.mean() == pytest.approx(canonical_loss(world.model, twice, batch, B), rel=0.2)


@pytest.mark.parametrize("reported", [0.0, -1.0, math.nan, math.inf])
def test_factors_need_positive_losses(world: World, reported: float) -> None:
    with pytest.raises(NotReplayable, match=r"the reported loss is .*needs positive finite losses"):
        world.split(world.batch([0, 1]), reported)


def test_a_negative_loss_is_said(world: World) -> None:
    with pytest.raises(NotReplayable, match=r"random batches .*needs positive finite losses"):
        world.split(world.batch([0, 1]), 1.0, lambda m, b: mean_ce(m, b) - 100)


def test_a_loss_that_raises(world: World) -> None:
    with pytest.raises(BadTraining, match="raised KeyError"):
        world.split(world.batch([0, 1]), 1.0, lambda m, b: {}["x"])
