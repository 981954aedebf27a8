"""Whether chance draws such a batch: how many samples are asked, and which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike import batches, chance
from whyspike.readers import read
from whyspike.record import watch
from whyspike.replay import Subject
from whyspike.types import Event

N, SIZE = 3000, 4


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def targets(garbled: float = 0.0) -> torch.Tensor:
    """Lognormal noise; sample 17 is garbled where asked."""
    y = torch.from_numpy(np.random.default_rng(3).lognormal(0, 1, (N, 1)).astype(np.float32))
    if garbled:
        y[17] = garbled
    return y


def recorded(folder: Path, y: torch.Tensor):
    """One epoch of a network that stands still, so that every loss is the luck of the draw."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(
        TensorDataset(torch.zeros(N, 1), y), batch_size=SIZE, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    with watch(model, optimizer, loss_fn=squared_error, path=folder) as rec:
        for batch in rec.batches(loader):
            loss = squared_error(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.step(loss)
    run = read(folder)
    subject = Subject.of(rec, run)
    assert subject is not None
    return run, subject


@pytest.mark.parametrize(("garbled", "by_chance"), [(0.0, True), (3000.0, False)])
def test_the_highest_batch_of_a_heavy_tail_is_chance_and_that_of_a_garbled_sample_is_not(tmp_path, garbled, by_chance):
    run, subject = recorded(tmp_path / "run", targets(garbled))
    row = int(np.argmax(run.loss))
    if garbled:
        assert run.sample_ids is not None
        assert 17 in run.sample_ids[row]
    event = Event(id="e1", kind="spike", step=int(run.step[row]), last_step=int(run.step[row]), reported=50.0)
    with subject.kept():
        p = chance.nearby(subject, run, event)
    assert p is not None
    assert (p > chance.line(run)) == by_chance


def test_the_events_own_samples_do_not_speak_for_themselves(tmp_path):
    _, subject = recorded(tmp_path / "run", targets(3000.0))
    with subject.kept():
        others = chance._others(subject, [17, 5], 10_000)
        assert others is not None
        assert batches.size(others) == N - 2
        assert float(others[1].max()) < 3000.0
        limited = chance._others(subject, [17], 100)
        assert limited is not None
        assert batches.size(limited) == 100


def test_a_dip_is_held_against_the_lower_end(tmp_path):
    run, subject = recorded(tmp_path / "run", targets())
    low, high = int(np.argmin(run.loss)), int(np.argmax(run.loss))
    event = Event(id="e1", kind="dip", step=int(run.step[low]), last_step=int(run.step[low]), reported=0.5)
    with subject.kept():
        ordinary = chance.nearby(subject, run, event)
        swapped = chance.nearby(subject, run, replace(event, step=int(run.step[high])))
    assert ordinary is not None
    assert swapped is not None
    assert chance.line(run) < ordinary < 0.05  # the lowest of 750 batches
    assert swapped > 0.99  # a high batch is no dip
