"""What sample ids say by themselves: checked against counting by hand, and on loaders whose answer is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.cause import Observation
from whyspike.sampling import BUFFERED, SHUFFLED, Sampling, sampling
from whyspike.types import Mark, Run


def run_of(passes: list[list[list[int]]], *, cut: tuple[int, ...] = (), size: int | None = None) -> Run:
    """A run whose k-th pass has these batches of ids; those named in `cut` were left before their end."""
    ids = [np.array(b, dtype=np.int64) for p in passes for b in p]
    epoch = [k for k, p in enumerate(passes) for _ in p]
    ends = np.cumsum([len(p) for p in passes])
    marks = tuple(
        Mark(int(end), "epoch-cut" if k in cut else "epoch", {"epoch": k, "steps": len(p)})
        for k, (p, end) in enumerate(zip(passes, ends, strict=True))
    )
    return Run(
        source="made by hand",
        reader="test",
        step=np.arange(len(ids)),
        loss=np.ones(len(ids)),
        epoch=np.array(epoch, dtype=np.int64),
        index=np.array([i for p in passes for i in range(len(p))], dtype=np.int64),
        sample_ids=tuple(ids),
        facts={"dataset_size": size} if size is not None else {},
        marks=marks,
    )


def read(passes: list[list[list[int]]], **kw) -> Sampling:
    found = sampling(run_of(passes, **kw))
    assert found is not None
    return found


def batched(order: np.ndarray, size: int = 8) -> list[list[int]]:
    return [order[i : i + size].tolist() for i in range(0, len(order), size)]


def buffered(n: int, buffer: int, rng: np.random.Generator) -> np.ndarray:
    """tf.data's shuffle: fill a buffer, hand out a random element of it, take in the next."""
    held, out, source = [], [], iter(range(n))
    for i in source:
        held.append(i)
        if len(held) == buffer:
            out.append(held.pop(rng.integers(len(held))))
    while held:
        out.append(held.pop(rng.integers(len(held))))
    return np.array(out)


# --------------------------------------------------------------------------- loaders whose answer is known


def test_a_full_shuffle_moves_a_sample_by_a_third_of_the_data():
    rng = np.random.default_rng(0)
    found = read([batched(rng.permutation(2000)) for _ in range(5)], size=2000)
    assert found.displacement == pytest.approx(SHUFFLED, abs=0.02)
    assert found.rank_correlation == pytest.approx(0, abs=0.05)
    assert found.equal_orders == (0, 4)
    assert found.drawn_twice == 0
    assert found.repeats == ()
    assert found.never is not None
    assert len(found.never) == 0


def test_a_buffer_leaves_samples_near_their_place():
    rng = np.random.default_rng(0)
    found = read([batched(buffered(2000, 100, rng)) for _ in range(3)])
    assert found.displacement is not None
    assert 0 < found.displacement < BUFFERED
    assert found.rank_correlation is not None
    assert found.rank_correlation > 0.95
    assert found.buffer is not None
    assert 95 <= found.buffer <= 100


def test_the_order_of_the_file_has_no_displacement_and_repeats():
    found = read([batched(np.arange(64)) for _ in range(4)])
    assert found.displacement == 0
    assert found.rank_correlation == pytest.approx(1)
    assert found.equal_orders == (3, 3)


def test_samples_drawn_with_replacement_are_drawn_twice_in_a_pass():
    rng = np.random.default_rng(0)
    found = read([batched(rng.integers(4000, size=4000)) for _ in range(3)], size=4000)
    assert found.drawn_twice == pytest.approx(np.exp(-1), abs=0.02)


def test_drop_last_without_shuffling_never_trains_on_the_rest():
    found = read([batched(np.arange(64)) for _ in range(3)], size=70)
    assert found.never is not None
    assert found.never.tolist() == list(range(64, 70))


def test_a_padded_last_batch_is_named_with_its_copies():
    found = read([[[0, 1, 2, 3], [4, 5, 4, 4]], [[5, 4, 3, 2], [1, 0, 1, 0]]])
    assert [(r.row, r.index, r.copies.tolist(), r.n_samples) for r in found.repeats] == [
        (1, 1, [2, 3], 4),
        (3, 1, [2, 3], 4),
    ]


def test_an_epoch_that_begins_again_after_a_cut_draws_what_it_had_drawn():
    order = np.random.default_rng(0).permutation(40)
    found = read([batched(order)[:3], batched(order)], cut=(0,), size=40)
    (restart,) = found.restarts
    assert restart.row == 3
    assert (restart.n_before, restart.n_after) == (24, 40)
    assert restart.same_order
    assert restart.again.tolist() == order[:24].tolist()
    assert not restart.resumed_rightly
    assert restart.left_out == 0


def test_an_epoch_that_goes_on_where_it_was_cut_draws_nothing_again():
    order = np.random.default_rng(0).permutation(40)
    found = read([batched(order)[:3], batched(order)[3:], batched(order[::-1])], cut=(0,), size=40)
    (restart,) = found.restarts
    assert restart.resumed_rightly
    assert not restart.same_order
    assert restart.left_out == 0


def test_a_new_shuffle_after_a_cut_leaves_some_samples_out_when_it_is_cut_short():
    rng = np.random.default_rng(0)
    rest = rng.permutation(40)[:16]
    found = read([batched(rng.permutation(40))[:3], batched(rest)], cut=(0,), size=40)
    (restart,) = found.restarts
    assert 0 < len(restart.again) < 16
    assert restart.left_out == 40 - 24 - (16 - len(restart.again))


def test_the_last_pass_may_still_be_going_on():
    run = run_of([batched(np.arange(16)), batched(np.arange(16))])
    going_on = sampling(Run(**{**vars(run), "marks": run.marks[:1]}))
    assert going_on is not None
    assert [p.whole for p in going_on.passes] == [True, False]
    assert going_on.restarts == ()


def test_without_ids_there_is_nothing_to_read():
    run = run_of([batched(np.arange(16))])
    assert sampling(Run(**{**vars(run), "sample_ids": None})) is None
    assert Observation(run=Run(**{**vars(run), "epoch": None}), events=()).sampling is None


def test_an_observation_reads_them_once():
    seen = Observation(run=run_of([batched(np.arange(16))]), events=())
    assert seen.sampling is not None
    assert seen.sampling is seen.sampling


# --------------------------------------------------------------------------- against counting by hand

PASSES = st.lists(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5), min_size=1, max_size=5), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(PASSES, st.data())
def test_it_says_what_counting_by_hand_says(passes, data):
    cut = tuple(data.draw(st.sets(st.integers(0, len(passes) - 1))))
    found = read(passes, cut=cut, size=12)
    flat = [[i for b in p for i in b] for p in passes]
    whole = [ids for k, ids in enumerate(flat) if k not in cut]

    assert found.equal_orders == (sum(a == b for a, b in pairwise(whole)), max(0, len(whole) - 1))

    moved = []
    for ids in whole:
        kinds = sorted(set(ids))
        moved.append(np.mean([abs(k / len(ids) - kinds.index(i) / len(kinds)) for k, i in enumerate(ids)]))
    if whole:
        assert found.displacement == pytest.approx(np.mean(moved))
    else:
        assert found.displacement is None

    repeats, row = [], 0
    for p in passes:
        for index, ids in enumerate(p):
            copies = [k for k, i in enumerate(ids) if i in ids[:k]]
            if copies:
                repeats.append((row, index, copies))
            row += 1
    assert [(r.row, r.index, r.copies.tolist()) for r in found.repeats] == repeats

    twice = sum(i in ids[:k] for ids in flat for k, i in enumerate(ids))
    assert found.drawn_twice == pytest.approx(twice / sum(map(len, flat)))

    again = [[i for i in after if i in before] for k, (before, after) in enumerate(pairwise(flat)) if k in cut]
    assert [r.again.tolist() for r in found.restarts] == again

    assert found.never is not None
    assert found.never.tolist() == sorted(set(range(12)) - {i for ids in flat for i in ids})
