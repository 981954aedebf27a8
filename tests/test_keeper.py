"""When the detector has the news of a step, the snapshot before it and all steps since are still there."""

from __future__ import annotations

import pytest
import torch

from whyspike.keeper import LATE, Keeper
from whyspike.stretch import Stretch


@pytest.mark.parametrize("stride", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("steps_per_epoch", [10, 37, 100, 200, 777, 100_000])
def test_what_is_seen_late_can_still_be_replayed(stride: int, steps_per_epoch: int) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keeper = Keeper(model, optimizer, None, None, max_bytes=1 << 20, store_batches=True, mark=lambda *_: None)
    keeper.stride.every = stride
    keeper._pins.for_routine = lambda kind, elapsed_s: []  # type: ignore[method-assign]  # nothing is written
    keeper.held.hold([torch.zeros(1)], 0)  # small: memory has room for the batches of any number of steps
    undrained, drain_at, seen, most, since = [], 16, 0, 0, 0
    taken: list[int] = []
    for step in range(6 * stride + 2000):
        index = step % steps_per_epoch
        if index == 0:
            keeper.epoch_begins(step, steps_per_epoch - 1)
        if step >= keeper.next_step and keeper.due(step, index, steps_per_epoch - 1):
            keeper.take(step, index, steps_per_epoch - 1, float(step))
            taken.append(step)
        entry = (1.0, (), (0, 0, 0.1, None), (-1, 0.0, 0.0))
        undrained.append(entry)
        keeper.held.steps.append(entry)
        if step + 1 >= drain_at:
            keeper.follow(Stretch(step + 1 - len(undrained), undrained))
            if most == keeper.held.most:  # it grows to its size within two
                for late in range(max(seen, since), step + 1 - LATE):
                    slot = keeper._ring.covering(late)
                    assert slot is not None
                    assert slot.step == max(s for s in taken if s <= late)
                    assert slot.step >= keeper.held.begin
            else:
                since = step + stride
            seen, most = max(seen, step + 1 - LATE), keeper.held.most
            undrained, drain_at = [], step + 1 + keeper.behind
    assert seen > 3 * stride
