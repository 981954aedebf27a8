"""Saving and loading a training: what is not in a state dict shows in the next step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike import Training
from whyspike.errors import BadTraining
from whyspike.frozen import rng_state
from whyspike.resume import resumes

torch.set_num_threads(1)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Counting(nn.Module):
    """A layer whose temperature falls with every call, kept in a plain attribute that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x / (1 + 0.1 * self.calls)


class Forgetful(torch.optim.SGD):
    """An optimizer that keeps its memory outside its state."""

    memory: dict[int, torch.Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.memory = getattr(self, "memory", {})  # a copy of an optimizer has its state alone
        for k, p in enumerate(self.param_groups[0]["params"]):
            self.memory[k] = 0.9 * self.memory.get(k, torch.zeros_like(p)) + p.grad
            p.data.sub_(self.param_groups[0]["lr"] * self.memory[k])


def make(*extra: nn.Module, optimizer: Any = torch.optim.Adam, scheduler: bool = False, n: int = 66) -> Training:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g))
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), *extra, nn.Linear(8, 3))
    made = optimizer(model.parameters(), lr=0.01)
    return Training(
        model=model,
        optimizer=made,
        loss_fn=loss_of,
        loader=DataLoader(data, batch_size=16, shuffle=True),
        epochs=1,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(made, 10) if scheduler else None,
    )


@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_a_training_whose_state_dicts_hold_everything_goes_on_bitwise(optimizer, scheduler):
    made = resumes(make(optimizer=optimizer, scheduler=scheduler))
    assert made.same, made
    assert made.differs == ()


def test_what_a_module_keeps_in_a_plain_attribute_shows():
    made = resumes(make(Counting()))
    assert not made.same
    assert made.loss[0] != made.loss[1]
    assert "model.0.weight" in made.differs


def test_what_an_optimizer_keeps_outside_its_state_shows():
    made = resumes(make(optimizer=Forgetful))
    assert made.loss[0] == made.loss[1]  # the step itself is the same; its update is not
    assert not made.same
    assert "model.0.weight" in made.differs


def test_nothing_of_the_training_changes():
    training = make(scheduler=True)
    kept = {k: v.clone() for k, v in training.model.state_dict().items()}
    generators = rng_state()["torch"]
    resumes(training)
    assert all(torch.equal(v, kept[k]) for k, v in training.model.state_dict().items())
    assert not training.optimizer.state
    assert torch.equal(rng_state()["torch"], generators)


def test_a_loader_without_a_batch_is_refused():
    training = make()
    training.loader = []
    with pytest.raises(BadTraining, match="yields no batch"):
        resumes(training)
