"""Batches as rows: any nest, cut, joined, repeated, stored and read again."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike import batches
from whyspike.errors import NotReplayable

Pair = namedtuple("Pair", "image label")


def same(a: Any, b: Any) -> bool:
    """The slow, obvious comparison: type, structure, dtype and every value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def leaves(n: int) -> st.SearchStrategy:
    """Things with n rows each."""
    return st.one_of(
        st.integers(1, 3).map(lambda width: torch.arange(n * width).reshape(n, width).float()),
        st.just(torch.arange(n)),
        st.just(np.arange(n * 2.0).reshape(n, 2)),
        st.just([f"name {i}" for i in range(n)]),
    )


@st.composite
def nests(draw: st.DrawFn) -> tuple[Any, int]:
    # n = 5 is longer than any container drawn, so that a list is a container or rows without doubt
    n = 5
    inner = st.recursive(
        leaves(n),
        lambda children: st.one_of(
            st.lists(children, min_size=1, max_size=3),
            st.lists(children, min_size=1, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from(["x", "y", "z"]), children, min_size=1),
        ),
        max_leaves=6,
    )
    constants = {"temperature": draw(st.sampled_from([None, 3, 2.5, True, "text"])), "weight": torch.tensor(0.5)}
    return {"first": torch.arange(n), "rest": draw(inner), **constants}, n


@settings(deadline=None, max_examples=60)
@given(nests(), st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_taking_rows_twice_is_taking_the_rows_of_the_rows(nest: tuple[Any, int], rows: list[int]) -> None:
    batch, n = nest
    taken = batches.take(batch, rows, n)
    assert batches.size(taken) == len(rows)
    if len(rows) > 3:  # a list of that length is no container here
        again = list(range(len(rows)))[::-1]
        assert same(batches.take(taken, again, len(rows)), batches.take(batch, rows[::-1], n))


@settings(deadline=None, max_examples=60)
@given(nests())
def test_cutting_and_joining_gives_the_batch_back(nest: tuple[Any, int]) -> None:
    batch, n = nest
    parts = [batches.take(batch, [0, 1, 2, 3], n), batches.take(batch, [4, 0, 1, 2], n)]
    assert same(batches.concat(parts, [4, 4]), batches.take(batch, [0, 1, 2, 3, 4, 0, 1, 2], n))


@settings(deadline=None, max_examples=60)
@given(nests())
def test_a_batch_survives_json_and_numpy(nest: tuple[Any, int]) -> None:
    batch, _ = nest
    tree, tensors = batches.flatten(batch)
    assert same(batches.unflatten(json.loads(json.dumps(tree)), tensors), batch)


@settings(deadline=None, max_examples=30)
@given(nests())
def test_a_copy_shares_nothing(nest: tuple[Any, int]) -> None:
    batch, _ = nest
    copy = batches.clone(batch)
    assert same(copy, batch)
    batches.walk(copy, lambda t: t.zero_(), lambda a: a.fill(0))
    assert same(batch["first"], torch.arange(5))


def test_versions_grow_with_a_change_in_place() -> None:
    batch = (torch.ones(3), {"y": torch.ones(3)})
    before = batches.versions(batch)
    batch[1]["y"].mul_(2)
    assert before == (0, 0)
    assert batches.versions(batch) == (0, 1)


def test_named_tuples_and_ordered_dicts_keep_their_type() -> None:
    batch = Pair(torch.arange(4), OrderedDict(y=torch.arange(4)))
    taken = batches.take(batch, [2], 4)
    assert isinstance(taken, Pair)
    tree, tensors = batches.flatten(batch)
    assert same(batches.unflatten(tree, tensors), batch)


def test_a_named_tuple_of_an_unknown_class_is_rebuilt_without_importing_it() -> None:
    tree, tensors = batches.flatten(Pair(torch.arange(2), None))
    tree["c"][0] = "no_such_module"
    rebuilt = batches.unflatten(tree, tensors)
    assert rebuilt._fields == ("image", "label")
    assert torch.equal(rebuilt.image, torch.arange(2))


def test_lists_of_two_tensors_are_columns_and_lists_of_samples_are_rows() -> None:
    x, y = torch.arange(2), torch.arange(2) * 10
    assert same(batches.take([x, y], [1], 2), [x[1:], y[1:]])
    images = (torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.ones(3, 5, 8))  # three channels, three images
    boxes = ({"boxes": torch.zeros(0, 4)}, {"boxes": torch.ones(2, 4)}, {"boxes": torch.ones(1, 4)})
    taken = batches.take((images, boxes), [2, 0], 3)
    assert taken[0][0].shape == (3, 5, 8)
    assert taken[1][1]["boxes"].shape == (0, 4)


def test_tiling_repeats_the_batch_as_a_whole() -> None:
    assert batches.tile([torch.tensor([1, 2])], 3)[0].tolist() == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("batch", "n", "words"),
    [
        ((torch.zeros(32, 3), torch.zeros(37, 6)), 32, "shape (37, 6)"),
        ({"x": torch.zeros(4), "graph": object()}, 4, "builtins.object"),
        ((torch.zeros(4).to_sparse(),), 4, "sparse"),
        (torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]), 2, "PackedSequence"),
    ],
)
def test_what_cannot_be_cut_is_named(batch: object, n: int, words: str) -> None:
    with pytest.raises(NotReplayable, match=words.replace("(", r"\(").replace(")", r"\)")):
        batches.take(batch, [0], n)


def test_a_batch_without_tensors_has_no_size() -> None:
    with pytest.raises(NotReplayable, match="collate_fn"):
        batches.size({"text": ["a", "b"]})


def test_joining_batches_of_different_width_is_refused() -> None:
    with pytest.raises(NotReplayable, match="same shape of a row"):
        batches.concat([torch.zeros(2, 3), torch.zeros(2, 4)])


def test_what_cannot_be_stored_without_pickle_is_refused() -> None:
    with pytest.raises(NotReplayable, match="without pickle"):
        batches.flatten({"x": torch.zeros(2), "f": print})
