"""Cures as parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import whyspike
from whyspike import cures
from whyspike.cures import BlockedSampler, SkipAndName, WithReplacementSampler, clip_threshold, per_unit
from whyspike.errors import BadTraining, UnreadableRun
from whyspike.exponent import measure


def test_a_sum_over_units_divided_once_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    batch = (torch.randn(16, 4), torch.randint(3, (16,)))
    total = lambda model, b: F.cross_entropy(model(b[0]), b[1], reduction="sum")  # noqa: E731
    assert measure(model, total, batch).alpha == pytest.approx(1.0, abs=0.02)
    cured = per_unit(total, lambda b: (b[1] > 0).sum())
    assert measure(model, cured, batch).alpha == pytest.approx(0.0, abs=0.02)
    empty = (batch[0][:1], torch.zeros(1, dtype=torch.long))
    assert torch.isfinite(cured(model, empty))


def test_blocks_keep_their_place():
    sampler = BlockedSampler(10, 4, generator=torch.Generator().manual_seed(0))
    epochs = [list(sampler) for _ in range(5)]
    for order in epochs:
        assert sorted(order[:4]) == [0, 1, 2, 3]
        assert sorted(order) == list(range(10))
    assert len({tuple(order) for order in epochs}) > 1
    assert len(sampler) == 10


def test_draws_with_replacement():
    order = list(WithReplacementSampler(1000, generator=torch.Generator().manual_seed(0)))
    assert len(order) == 1000
    assert 600 < len(set(order)) < 665  # 63 % of them: 1 - 1/e
    with pytest.raises(BadTraining, match="n=0 was given"):
        WithReplacementSampler(0)


def test_a_threshold_from_the_recorded_norms(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    norms = []
    with whyspike.watch(model, optimizer, path=tmp_path / "run", closely=True) as rec:
        for _ in range(40):
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
            optimizer.step()
            rec.step(loss)
    assert clip_threshold(rec.path, 1.0) in [pytest.approx(n) for n in norms]
    assert min(norms) < clip_threshold(rec.path) < max(norms)
    with pytest.raises(BadTraining, match="quantile=0"):
        clip_threshold(rec.path, 0)
    with pytest.raises(UnreadableRun):
        clip_threshold(tmp_path / "none")


def test_a_bad_batch_is_skipped_and_named():
    model = nn.Linear(2, 1)
    said = []
    skip = SkipAndName(model.parameters(), bad=[7], say=said.append)
    weights = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for value, ids, skipped in ((1.0, [1, 2], False), (float("nan"), [3, 4], True), (1.0, [5, 7], True)):
        optimizer.zero_grad()
        loss = model(torch.full((2, 2), value)).mean()
        loss.backward()
        assert skip(loss, ids) is skipped
        if not skipped:
            optimizer.step()
    assert skip.skipped == [(3, 4), (5, 7)]
    assert "not finite; its samples: [3, 4]" in said[0]
    assert "it holds the samples [7]" in said[1]
    assert torch.isfinite(model.weight).all()
    assert not torch.equal(model.weight, weights)


@pytest.mark.parametrize("part", [per_unit, BlockedSampler, WithReplacementSampler, clip_threshold, SkipAndName])
def test_each_part_says_when_it_is_not_the_cure(part):
    assert "Not " in part.__doc__
    assert part.__module__ == cures.__name__
