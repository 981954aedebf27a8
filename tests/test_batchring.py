"""Copies of the latest batches in memory that is written again: checked against clones that are kept for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike import batches
from whyspike.batchring import BLOCK, LEAST_BYTES, BatchRing
from whyspike.capsule import load
from whyspike.heldsteps import HeldSteps
from whyspike.readers.runfolder import read


def batch_of(kind: str, value: int, rows: int = 3) -> Any:
    x, y = torch.full((rows, 2), float(value)), torch.full((rows,), value)
    return {"list": [x, y], "tuple": (x, y), "dict": {"x": x, "y": y}}[kind]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["list", "tuple", "dict"]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=BLOCK * 3),
)
def test_a_copy_stays_as_it_is_for_as_many_steps_as_asked(kind: str, steps: list[tuple[int, int]]) -> None:
    holds = [1]
    ring = BatchRing(batch_of(kind, 0), lambda: holds[0])
    kept: list[tuple[int, Any, Any]] = []  # (step, copy, what it was)
    value = 0
    for step, (micro, longer) in enumerate(steps):
        holds[0] = max(holds[0], longer)  # it only ever grows
        for _ in range(micro):  # a step may have several batches, or none
            value += 1
            batch = batch_of(kind, value)
            copy = ring.keep(batch, step)
            assert type(copy) is type(batch)
            kept.append((step, copy, batches.clone(batch)))
            next(iter(batch.values() if kind == "dict" else batch)).zero_()  # what the training does to it is not seen
        kept = [one for one in kept if one[0] >= step - holds[0]]
        assert all(batches.equal(copy, was) for _, copy, was in kept)


@pytest.mark.parametrize(
    "other",
    [
        batch_of("list", 1, rows=2),
        batch_of("tuple", 1),
        [torch.zeros(3, 2)],
        [torch.zeros(3, 2), torch.zeros(3)],  # another dtype
        [torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)],  # would be broadcast
        [torch.zeros(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.long)],
        [torch.zeros(3, 2).to_sparse(), torch.zeros(3, dtype=torch.long)],
        [torch.zeros(3, 2).numpy(), torch.zeros(3, dtype=torch.long)],
        torch.zeros(2, 3, 2),
        None,
    ],
)
def test_a_batch_of_another_form_is_not_copied(other: Any) -> None:
    ring = BatchRing(batch_of("list", 0), lambda: 10)
    assert ring.keep(batch_of("list", 1), 0) is not None
    assert ring.keep(other, 1) is None


@pytest.mark.parametrize(
    "batch", [torch.zeros(3), [], [torch.zeros(3), "name"], {"x": {"y": torch.zeros(3)}}, [torch.zeros(3).numpy()]]
)
def test_what_does_not_fit(batch: Any) -> None:
    assert not BatchRing.fits(batch)


def test_forms_that_change_all_the_time_are_held_as_they_are(tmp_path: Path) -> None:
    held = HeldSteps(store=True, say=lambda *_: None)
    wide = LEAST_BYTES // 4
    for step in range(40):
        batch = [torch.zeros(2 + step % 7, wide)]
        kept, versions = held.hold(batch, step)
        if step > 10:
            assert kept is batch
            assert versions == [0]
    assert held.ordinary is not None
    assert held.ordinary(batch, 40) == (batch, [0])


def test_capsules_hold_what_was_drawn_though_the_training_changes_it_in_place(tmp_path: Path) -> None:
    wide = LEAST_BYTES // 4 // 8 + 1
    data = TensorDataset(torch.arange(64.0)[:, None].repeat(1, wide), torch.arange(64.0)[:, None])
    model = torch.nn.Linear(wide, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(40):
            for x, y in rec.batches(DataLoader(data, batch_size=8, shuffle=True)):
                x.mul_(-1.0)
                optimizer.zero_grad()
                loss = (model(x) - y).pow(2).mean()
                loss.backward()
                optimizer.step()
                rec.step(loss)
    run = read(tmp_path / "run")
    assert not run.marked("batches-modified")  # it does not matter here
    checked = 0
    for path in run.capsules:
        for step in load(path).steps:
            assert step.batches is not None
            assert step.ids is not None
            [(x, y)] = step.batches
            assert x[:, 0].tolist() == y[:, 0].tolist() == step.ids.tolist()
            checked += 1
    assert checked > 40
