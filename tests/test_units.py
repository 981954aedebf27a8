"""Counting units in a batch, and finding the one that a loss is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from whyspike.units import candidates, fit


def test_counts_have_plain_names() -> None:
    labels = torch.tensor([[3, 0, -100], [1, -100, -100]])
    found = candidates({"x": torch.randn(2, 3, 4), "labels": labels, "mask": labels >= 0}, 2)
    assert found["positives of batch['labels']"] == 2
    assert found["non-zero entries of batch['labels']"] == 5
    assert found["entries of batch['labels'] other than -100"] == 3
    assert found["non-negative entries of batch['labels']"] == 3
    assert found["positives of batch['mask']"] == 3
    assert not any("'x'" in name for name in found)


def test_float_masks_lengths_and_arrays_are_counted() -> None:
    found = candidates(
        (torch.randn(3, 5), torch.tensor([[1.0, 0], [1, 1], [0, 0]]), torch.tensor([4, 2, 1]), np.array([[1, 0]])), 3
    )
    assert found["positives of batch[1]"] == 3
    assert found["sum of batch[2]"] == 7
    assert found["positives of batch[3]"] == 1


def test_lists_with_one_thing_per_sample_are_counted_together() -> None:
    boxes = [torch.rand(k, 4) for k in (2, 0, 3)]
    assert candidates((torch.randn(3, 8), boxes), 3)["entries of batch[1][:]"] == 5
    targets = [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.long)} for b in boxes]
    found = candidates((torch.randn(3, 8), targets), 3)
    assert found["entries of batch[1][:]['boxes']"] == 5
    assert found["positives of batch[1][:]['labels']"] == 5


def test_inputs_and_targets_in_a_list_are_no_samples() -> None:
    found = candidates([torch.randint(3, (2, 4)), torch.randint(3, (2, 4))], 2)
    assert "positives of batch[0]" in found
    assert "positives of batch[1]" in found


@pytest.mark.parametrize("batch", [None, "text", 3, [], {}, [None, "a"], torch.randn(4, 2), object()])
def test_batches_without_counts_give_none(batch: Any) -> None:
    assert candidates(batch, 4) == {}


def rows(slope: float, *, n: int = 60, noise: float = 0.1, seed: int = 0, trend: float = 0.0) -> list[Any]:
    rng = np.random.default_rng(seed)
    out = []
    for step in range(n):
        boxes, other = int(rng.integers(1, 40)), int(rng.integers(1, 40))
        loss = 2.0 * boxes**slope * np.exp(noise * rng.normal() - trend * step)
        out.append((loss, {"other": other, "boxes": boxes, "same": boxes, "constant": 512}, 32, step))
    return out


@pytest.mark.parametrize("trend", [0.0, 0.1])
def test_the_divisor_is_found_with_its_slope(trend: float) -> None:
    found = fit(rows(-1.0, trend=trend), {}, 32)
    assert found is not None
    assert found.name == "boxes"
    assert found.slope == pytest.approx(-1, abs=0.1)
    low, high = found.interval
    assert low < -1 < high
    assert high - low < 0.3
    assert found.correlation < -0.95
    assert found.by_step[0] == rows(-1.0)[0][1]["boxes"]
    assert found.typical == np.median([r[1]["boxes"] for r in rows(-1.0)])


def test_small_batches_do_not_count_but_their_units_are_given() -> None:
    few = (100.0, {"other": 1, "boxes": 1, "same": 1, "constant": 512}, 2, 60)
    found = fit([*rows(-1.0), few], {}, 32)
    assert found is not None
    assert found.slope == pytest.approx(-1, abs=0.1)
    assert found.by_step[60] == 1


def test_a_logged_count_is_a_candidate_and_a_logged_metric_is_not() -> None:
    table = rows(-1.0)
    bare = [(loss, {}, n, step) for loss, _, n, step in table]
    boxes = {step: float(c["boxes"]) for _, c, _, step in table}
    copy = {step: loss for loss, _, _, step in table}
    found = fit(bare, {"copy_of_loss": copy, "n_boxes": boxes}, 32)
    assert found is not None
    assert found.name == "n_boxes"
    assert fit(bare, {"copy_of_loss": copy}, 32) is None


def test_nothing_is_found_where_nothing_follows() -> None:
    found = [fit(rows(0.0, seed=seed), {}, 32, seed=seed) for seed in range(60)]
    assert sum(f is not None for f in found) <= 3  # the level is 1 %; 4 of 60 has a chance of .3 %


def test_nothing_is_found_in_what_does_not_vary_or_in_too_few_rows() -> None:
    constant = [(loss, {"constant": 512}, n, step) for loss, _, n, step in rows(-1.0)]
    assert fit(constant, {}, 32) is None
    assert fit(rows(-1.0)[:8], {}, 32) is None
    assert fit(rows(-1.0), {}, 64) is None
    assert fit([], {}, 32) is None


def test_a_batch_without_units_counts_as_one() -> None:
    table = [(loss, {"boxes": 0 if c["boxes"] == 1 else c["boxes"]}, n, s) for loss, c, n, s in rows(-1.0, n=200)]
    assert any(c["boxes"] == 0 for _, c, _, _ in table)
    found = fit(table, {}, 32)
    assert found is not None
    assert found.slope == pytest.approx(-1, abs=0.1)
