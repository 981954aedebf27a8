"""The orders of an experiment: what they keep, and how long ago a sample was last trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from whyspike import orders
from whyspike.errors import NotReplayable
from whyspike.loader_order import fetch, reordered
from whyspike.rerun import train
from whyspike.seams import BASELINE, EpochContext, Intervention
from whyspike.training import Training

SHUFFLES = [
    orders.Reshuffle,
    orders.FixedOrder,
    orders.BlockReshuffle,
    orders.ReversedOrder,
    orders.QuartersSwapped,
]


def in_batches(flat: np.ndarray, size: int) -> list[np.ndarray]:
    return [flat[k : k + size] for k in range(0, len(flat), size)]


def context(previous: list[np.ndarray], size: int, seed: int = 0) -> EpochContext:
    return EpochContext(epoch=len(previous), batch_size=size, previous=previous, rng=np.random.default_rng(seed))


def two_epochs(order: Intervention, n: int = 4000, size: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled epoch and the one after it in the given order, each [n]."""
    rng = np.random.default_rng(seed)
    last, drawn = rng.permutation(n), rng.permutation(n)
    made = order.order(context([last], size, seed), in_batches(drawn, size))
    return last, np.concatenate(made)


def gaps(last: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Epochs since each sample of the second epoch was drawn in the first."""
    where = {int(i): k for k, i in enumerate(last)}
    return np.array([(len(last) + k - where[int(i)]) / len(last) for k, i in enumerate(now)])


@given(
    st.sampled_from(SHUFFLES),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_a_shuffle_keeps_the_samples_and_the_sizes_of_the_batches(
    kind: type[Intervention], n: int, size: int, epochs: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    previous = [rng.permutation(n) for _ in range(epochs)]
    drawn = in_batches(rng.permutation(n), size)
    made = kind().order(context(previous, size, seed), drawn)
    assert [len(b) for b in made] == [len(b) for b in drawn]
    assert sorted(np.concatenate(made).tolist()) == list(range(n))


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 1000))
def test_with_replacement_draws_as_many_of_the_same_samples(n: int, size: int, seed: int) -> None:
    drawn = in_batches(np.random.default_rng(seed).permutation(n), size)
    made = orders.WithReplacement().order(context([], size, seed), drawn)
    assert [len(b) for b in made] == [len(b) for b in drawn]
    assert set(np.concatenate(made).tolist()) <= set(range(n))


@pytest.mark.parametrize(
    ("order", "expected", "within"),
    [
        (orders.Reshuffle(), [0.625, 0.875, 1.125, 1.375], 0.04),
        (orders.FixedOrder(), [1, 1, 1, 1], 0),
        (orders.BlockReshuffle(), [1, 1, 1, 1], 0.01),
        (orders.ReversedOrder(), [0.25, 0.75, 1.25, 1.75], 1e-3),
        (orders.QuartersSwapped(), [0.75, 1.25, 0.75, 1.25], 0.01),
    ],
)
def test_gaps_follow_the_law_of_the_order(order: Intervention, expected: list[float], within: float) -> None:
    found = gaps(*two_epochs(order))
    means = [q.mean() for q in np.array_split(found, 4)]
    assert means == pytest.approx(expected, abs=within + 1e-12)


def test_blocks_keep_every_gap_near_one_and_shuffle_all_the_same() -> None:
    last, now = two_epochs(orders.BlockReshuffle(10))
    assert np.abs(gaps(last, now) - 1).max() <= 0.1
    assert (last != now).mean() > 0.99


def test_divisible_leaves_out_the_short_batch_alone() -> None:
    drawn = in_batches(np.arange(10), 4)
    made = orders.Divisible().order(context([], 4), drawn)
    assert [b.tolist() for b in made] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_fewer_samples_in_the_epoch_than_in_the_last_one() -> None:
    drawn = in_batches(np.arange(8), 4)
    made = orders.FixedOrder().order(context([np.arange(10)[::-1]], 4), drawn)
    assert np.concatenate(made).tolist() == [9, 8, 7, 6, 5, 4, 3, 2]


@pytest.mark.parametrize("kind", [*SHUFFLES, orders.WithReplacement, orders.Divisible])
def test_every_order_says_what_it_is(kind: type[Intervention]) -> None:
    assert kind().words not in ("", BASELINE.words)


# --------------------------------------------------------------------------- from scratch


def training(seed: int = 0, epochs: int = 3, **loader: Any) -> Training:
    torch.manual_seed(seed)
    x = torch.randn(50, 4)
    data = TensorDataset(torch.arange(50), x, x.sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        loss_fn=lambda model, batch: F.mse_loss(model(batch[1]), batch[2]),
        loader=DataLoader(data, batch_size=8, shuffle=True, **loader),
        epochs=epochs,
    )


class AsDrawn(Intervention):
    """Takes part at the order seam and changes nothing; remembers what it saw."""

    words = "as drawn"

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, list[int], int]] = []

    def order(self, at: EpochContext, ids: Any) -> Any:
        self.seen.append((at.epoch, at.batch_size, np.concatenate(ids).tolist(), len(at.previous)))
        return ids


@pytest.mark.parametrize("own", [False, True])
def test_a_seam_that_changes_nothing_leaves_the_training_bitwise(own: bool) -> None:
    def built() -> Training:
        return training(generator=torch.Generator().manual_seed(5)) if own else training()

    plain = train(built())
    seen = AsDrawn()
    passed = train(built(), seen)
    assert plain.loss.tobytes() == passed.loss.tobytes()
    assert plain.final_probe == passed.final_probe
    assert [s[0] for s in seen.seen] == [0, 1, 2]
    assert [s[3] for s in seen.seen] == [0, 1, 2]
    assert {s[1] for s in seen.seen} == {8}
    assert all(sorted(s[2]) == list(range(50)) for s in seen.seen)


def test_from_scratch_the_order_is_the_one_that_was_asked_for() -> None:
    made = training()
    drawn: list[int] = []

    def noting(model: nn.Module, batch: Any) -> torch.Tensor:
        drawn.extend(batch[0].tolist())
        return F.mse_loss(model(batch[1]), batch[2])

    made.loss_fn = noting
    sampler = made.loader.batch_sampler  # type: ignore[attr-defined]
    train(made, orders.ReversedOrder())
    first, second, third = np.split(np.array(drawn[:150]), 3)
    assert second.tolist() == first[::-1].tolist()
    assert third.tolist() == first.tolist()
    assert made.loader.batch_sampler is sampler  # type: ignore[attr-defined]


def test_leaving_the_short_batch_out_makes_shorter_epochs() -> None:
    assert len(train(training()).loss) == 21
    assert len(train(training(), orders.Divisible()).loss) == 18


def test_a_loader_without_an_order_says_so() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter([torch.zeros(4)] * 8)

    for loader in ([torch.zeros(4)], DataLoader(Stream(), batch_size=2)):
        with pytest.raises(NotReplayable, match="cannot be changed"), reordered(loader, orders.Reshuffle()):
            pass


def test_fetch_puts_a_batch_together_as_the_loader_does() -> None:
    class Rows(Dataset):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.tensor([i])

    class Several(Rows):
        def __getitems__(self, rows: list[int]) -> list[torch.Tensor]:
            return [torch.tensor([i, -i]) for i in rows]

    for data, width in ((Rows(), 1), (Several(), 2)):
        loader = DataLoader(data, batch_size=4)
        assert torch.equal(fetch(data, loader.collate_fn, np.array([4, 5, 6, 7])), list(loader)[1])
        assert list(loader)[1].shape == (4, width)
