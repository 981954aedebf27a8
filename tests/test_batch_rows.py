"""A batch of everything that a loader may give: cut, joined, repeated, and what cannot be is said."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from whyspike import batches
from whyspike.errors import NotReplayable

torch.set_num_threads(1)

Pair = namedtuple("Pair", ["x", "y"])
modest = settings(deadline=None, max_examples=50)


def rows_of(n: int) -> Any:
    """A nest of everything, with n recognisable rows."""
    numbers = torch.arange(n)
    return {
        "x": torch.stack([numbers, numbers * 10], 1).float(),
        "nested": [numbers, {"z": numbers.numpy() + 0.5}],
        "pair": Pair(numbers * 2, (numbers.double(),)),
        "names": [f"sample {int(i)}" for i in numbers],
        "ragged": [torch.arange(20 + int(i)) for i in numbers],
        "scale": 0.5,
        "nothing": None,
        "zero": torch.tensor(3.0),
    }


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every value."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def row(batch: Any, i: int) -> list[Any]:
    """Row i of `rows_of`, written out by hand."""
    return [
        batch["x"][i].tolist(),
        batch["nested"][0][i].item(),
        float(batch["nested"][1]["z"][i]),
        batch["pair"].x[i].item(),
        batch["pair"].y[0][i].item(),
        batch["names"][i],
        len(batch["ragged"][i]),
    ]


@given(n=st.integers(5, 12), data=st.data())
@modest
def test_take_gives_the_rows_asked_for(n: int, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    batch = rows_of(n)
    taken = batches.take(batch, chosen, n)
    assert [row(taken, k) for k in range(len(chosen))] == [row(batch, i) for i in chosen]
    assert (taken["scale"], taken["nothing"], taken["zero"].item()) == (0.5, None, 3)
    assert type(taken["pair"]) is Pair
    assert batches.size(taken) == len(chosen)


@given(n=st.integers(5, 12), data=st.data())
@modest
def test_what_was_cut_and_joined_again_is_the_whole(n: int, data: st.DataObject) -> None:
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=4))), n]
    pieces = [batches.take(rows_of(n), range(a, b), n) for a, b in pairwise(bounds)]
    assert same(batches.concat(pieces, [b - a for a, b in pairwise(bounds)]), rows_of(n))


@given(n=st.integers(5, 9), copies=st.integers(1, 4))
@modest
def test_tile_is_the_concatenation_of_copies(n: int, copies: int) -> None:
    assert same(batches.tile(rows_of(n), copies), batches.concat([rows_of(n)] * copies))


def test_ragged_rows_join_where_one_of_them_could_be_a_column() -> None:
    """A last batch of one sample whose ragged row has length 1: alone it could be a column, beside the others not."""
    pieces = [{"x": torch.zeros(2), "r": [torch.zeros(3), torch.zeros(4)]}, {"x": torch.zeros(1), "r": [torch.ones(1)]}]
    assert [len(r) for r in batches.concat(pieces)["r"]] == [3, 4, 1]


def test_two_samples_in_two_columns() -> None:
    """n = 2 and a pair: [x, y] is two columns when both have two rows; otherwise one thing for each sample."""
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([3, 4])
    assert same(batches.take([x, y], [1], 2), [x[1:], y[1:]])
    boxes = [torch.zeros(3, 4), torch.ones(5, 4)]  # one of each sample, of different lengths
    assert same(batches.take([x, boxes], [1, 1, 0], 2), [x[[1, 1, 0]], [boxes[1], boxes[1], boxes[0]]])
    targets = [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.ones(2, 4)}]  # dicts are always per sample
    assert same(batches.take((x, targets), [1], 2), (x[1:], [targets[1]]))
    assert same(batches.take(Pair(x, y), [0], 2), Pair(x[:1], y[:1]))
    assert same(batches.concat([[x, y], [x, y]]), [torch.cat([x, x]), torch.cat([y, y])])


def test_mappings_keep_their_type() -> None:
    class Encoding(dict):
        @property
        def ids(self) -> torch.Tensor:
            return self["ids"]

    numbers = torch.arange(3)
    assert batches.take(Encoding(ids=numbers), [2], 3).ids.tolist() == [2]
    assert type(batches.take(OrderedDict(a=numbers), [0], 3)) is OrderedDict
    assert batches.take(defaultdict(list, a=numbers), [0], 3)["new"] == []


@pytest.mark.parametrize("batch", [(), 7, "text", {"a": torch.tensor(1.0)}])
def test_a_batch_without_rows_is_said(batch: Any) -> None:
    with pytest.raises(NotReplayable, match=f"a batch of type {type(batch).__name__} was given.*let the loader"):
        batches.size(batch)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([torch.zeros(3, 2), torch.zeros(4)], r"the batch\[1\] holds a tensor of shape \(4,\).*3 samples.*collate_fn"),
        ({"x": torch.zeros(3), "y": object()}, r"the batch\['y'\] is of type builtins.object.*tensors, arrays"),
        ([torch.zeros(3), torch.zeros(3, 3).to_sparse()], r"the batch\[1\] is a sparse or nested tensor.*dense"),
        ([torch.zeros(3), pack_sequence([torch.zeros(2), torch.zeros(1)])], r"PackedSequence.*padded tensor"),
        ([torch.zeros(3), {1, 2, 3}], r"the batch\[1\] is of type builtins.set"),
    ],
)
def test_what_cannot_be_cut_is_said(batch: Any, said: str) -> None:
    with pytest.raises(NotReplayable, match=said):
        batches.take(batch, [0], 3)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "no batch was given; at least one"),
        ([torch.zeros(3, 2), torch.zeros(3, 3)], r"shape \(3, 3\) beside a tensor of shape \(3, 2\).*same shape"),
        ([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}], "has other keys in one batch than in another"),
        ([[torch.zeros(3), torch.zeros(3)], [torch.zeros(3)]], "list of another length"),
        ([[torch.zeros(3)], (torch.zeros(3),)], "is list in one batch and something else"),
    ],
)
def test_what_cannot_be_joined_is_said(parts: list[Any], said: str) -> None:
    with pytest.raises(NotReplayable, match=said):
        batches.concat(parts)


def test_what_python_has_beside_lists_is_stored() -> None:
    value = {"c": Counter("abca"), "s": {1, 2}, "d": deque([1.5, None]), 3: np.float32(0.1), "p": Pair(1, (2,))}
    document, tensors = batches.flatten(value)
    found = batches.unflatten(json.loads(json.dumps(document)), tensors)
    assert same(found, value)
    x = torch.ones(3)
    document, tensors = batches.flatten([x, {"again": x}, torch.ones(3)])
    assert len(tensors) == 2  # the same object is stored once


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "the batch is of type builtins.object.*without pickle"),
        ({"a": [b"bytes"]}, r"the batch\['a'\]\[0\] is of type builtins.bytes"),
        ({(1, 2): 3}, "a key of type tuple; strings and numbers"),
        (np.array(["a"]), "an array of dtype <U1; numbers are needed"),
        (torch.eye(2).to_sparse(), "a sparse or nested tensor"),
    ],
)
def test_what_cannot_be_stored_is_said(value: Any, said: str) -> None:
    with pytest.raises(NotReplayable, match=said):
        batches.flatten(value)
