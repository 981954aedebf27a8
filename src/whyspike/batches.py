"""A mini-batch as rows, whatever it is made of, and as plain JSON plus tensors for storage without pickle.

A batch is a nest of dicts, tuples, named tuples and lists around tensors, numpy arrays and lists with one thing per
sample. torch is used when it is loaded and never imported, so that a recorded batch can be read without it.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whyspike.errors import NotReplayable

_CONSTANT = (type(None), bool, int, float, complex, str, bytes)
_MAPPINGS: dict[str, Callable[..., Any]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}


def is_tensor(x: object) -> bool:
    """Whether x is a torch tensor; False as long as nobody has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def size(batch: Any) -> int:
    """The number of samples: the first dimension of the first tensor or array that has one.

    Raises:
        NotReplayable: the batch holds no tensor and no array with a dimension.
    """
    found = _first_dim(batch)
    if found is None:
        raise NotReplayable(
            f"a batch of type {type(batch).__name__} was given, in which there is no tensor or array whose first "
            "dimension would be the number of samples; let the loader's collate_fn return tensors"
        )
    return found


def _first_dim(x: Any) -> int | None:
    if is_tensor(x) or isinstance(x, np.ndarray):
        return int(x.shape[0]) if x.ndim else None
    if isinstance(x, Mapping):
        x = x.values()
    elif not isinstance(x, list | tuple):
        return None
    return next((n for n in map(_first_dim, x) if n is not None), None)


def take(batch: Any, rows: Sequence[int], n: int) -> Any:
    """A batch of the given rows, in that order; rows may repeat.

    Args:
        n: the number of samples of `batch`. A list [x, y] whose elements have first dimension n is a container; a
            list of n per-sample things is rows.

    Raises:
        NotReplayable: something in the batch has neither n rows nor is a constant.
    """
    index = [int(r) for r in rows]
    return _rows(batch, n, index, "the batch")


def concat(batches: Sequence[Any], sizes: Sequence[int] | None = None) -> Any:
    """One batch with the rows of all of them; constants come from the first.

    Args:
        sizes: samples of each; `size` of each when not given.

    Raises:
        NotReplayable: the batches are not built alike, or cannot be cut into rows.
    """
    if not batches:
        raise NotReplayable("no batch was given; at least one is needed to join them")
    counts = [size(b) for b in batches] if sizes is None else list(sizes)
    return _join(list(batches), counts, "the batch")


def tile(batch: Any, copies: int, n: int | None = None) -> Any:
    """The batch repeated as a whole, `copies` times."""
    n = size(batch) if n is None else n
    return take(batch, list(range(n)) * copies, n)


def clone(batch: Any) -> Any:
    """A copy that shares no memory with the batch; tensors are detached."""
    return _map(batch, lambda t: t.detach().clone(), lambda a: a.copy())


def versions(batch: Any) -> tuple[int, ...]:
    """The version counter of every tensor: it grows whenever one is modified in place."""
    found: list[int] = []
    walk(batch, lambda t: found.append(t._version), lambda a: None)
    return tuple(found)


def to_float64(batch: Any) -> Any:
    """The batch with every floating-point tensor and array in double precision."""
    return _map(
        batch,
        lambda t: t.double() if t.is_floating_point() else t,
        lambda a: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a,
    )


def equal(a: Any, b: Any) -> bool:
    """Whether two batches hold the same, bit for bit."""
    if a is b:
        return True
    (tree, ours), (other, theirs) = flatten(a), flatten(b)
    return tree == other and all(_same(ours[k], theirs[k]) for k in ours)


def _same(x: Any, y: Any) -> bool:
    if is_tensor(x):
        return x.shape == y.shape and x.dtype == y.dtype and bool((x == y).all())
    return np.array_equal(x, y)


def n_bytes(batch: Any) -> int:
    """Memory of all tensors and arrays, in bytes."""
    found: list[int] = []
    walk(batch, lambda t: found.append(t.numel() * t.element_size()), lambda a: found.append(a.nbytes))
    return sum(found)


def walk(x: Any, tensor: Callable[[Any], None], array: Callable[[Any], None]) -> None:
    """Visit every tensor and every numpy array, in order."""
    if is_tensor(x):
        tensor(x)
    elif isinstance(x, np.ndarray):
        array(x)
    elif isinstance(x, Mapping | list | tuple):
        for value in x.values() if isinstance(x, Mapping) else x:
            walk(value, tensor, array)


def form(batch: Any) -> tuple[int, ...]:
    """The sizes of all its tensors and arrays but their first, in order: batches are joined where these are equal."""
    found: list[int] = []
    walk(batch, lambda t: found.extend((t.dim(), *t.shape[1:])), lambda a: found.extend((a.ndim, *a.shape[1:])))
    return tuple(map(int, found))


# --------------------------------------------------------------------------- rows


def _map(x: Any, tensor: Callable[[Any], Any], array: Callable[[Any], Any]) -> Any:
    if is_tensor(x):
        return tensor(x)
    if isinstance(x, np.ndarray):
        return array(x)
    if isinstance(x, Mapping):
        return _mapping_like(x, {k: _map(v, tensor, array) for k, v in x.items()})
    if isinstance(x, list | tuple):
        return _sequence_like(x, [_map(v, tensor, array) for v in x])
    return x


def _mapping_like(old: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(old) is dict:
        return items
    if isinstance(old, defaultdict):
        return defaultdict(old.default_factory, items)
    try:  # e.g. transformers.BatchEncoding: attribute access must survive
        return type(old)(items)  # type: ignore[call-arg]
    except Exception:
        return items


def _sequence_like(old: Sequence[Any], items: list[Any]) -> Any:
    if hasattr(old, "_fields"):
        return type(old)(*items)
    return tuple(items) if isinstance(old, tuple) else items


def _is_rows(x: Sequence[Any], n: int) -> bool:
    """Whether a list or tuple holds one thing per sample, rather than columns of n rows each."""
    if len(x) != n or hasattr(x, "_fields"):
        return False
    if all(isinstance(e, Mapping) for e in x):
        return True
    if not all(isinstance(e, type(None)) or _has_rows(e, n) for e in x):
        return True
    # n columns of n rows each, or n samples whose own first dimension happens to be n (three images of three
    # channels): samples of one kind have the same number of dimensions, and their sizes may differ.
    shapes = {tuple(e.shape) for e in x if is_tensor(e) or isinstance(e, np.ndarray)}
    return len(shapes) > 1 and {len(s) for s in shapes} == {3}


def _has_rows(x: Any, n: int) -> bool:
    if is_tensor(x) or isinstance(x, np.ndarray):
        return x.ndim > 0 and x.shape[0] == n
    if isinstance(x, Mapping):
        return bool(x) and all(_has_rows(v, n) for v in x.values())
    if isinstance(x, list | tuple):
        return bool(x) and (len(x) == n or all(_has_rows(e, n) for e in x))
    return False


def _rows(x: Any, n: int, rows: list[int], where: str) -> Any:
    if is_tensor(x) or isinstance(x, np.ndarray):
        _check_dense(x, where)
        if x.ndim == 0:
            return x
        if x.shape[0] != n:
            raise NotReplayable(
                f"{where} holds {_describe(x)}, whose first dimension is not the {n} samples of the batch, so it "
                "cannot be cut into samples; let the collate_fn give every tensor one row per sample"
            )
        return x[rows]
    if isinstance(x, Mapping):
        return _mapping_like(x, {k: _rows(v, n, rows, f"{where}[{k!r}]") for k, v in x.items()})
    if isinstance(x, list | tuple):
        _check_not_packed(x, where)
        if _is_rows(x, n):
            return _sequence_like(x, [x[r] for r in rows])
        return _sequence_like(x, [_rows(v, n, rows, f"{where}[{i}]") for i, v in enumerate(x)])
    if isinstance(x, _CONSTANT):
        return x
    raise NotReplayable(_opaque(x, where))


def _join(parts: list[Any], counts: list[int], where: str) -> Any:
    first = parts[0]
    if any(type(p) is not type(first) for p in parts):
        raise NotReplayable(f"{where} is {type(first).__name__} in one batch and something else in another")
    if is_tensor(first) or isinstance(first, np.ndarray):
        _check_dense(first, where)
        if first.ndim == 0:
            return first
        for part, n in zip(parts, counts, strict=True):
            if part.shape[0] != n or part.shape[1:] != first.shape[1:]:
                raise NotReplayable(
                    f"{where} holds {_describe(part)} beside {_describe(first)}; joining needs one row per sample and "
                    "the same shape of a row in every batch"
                )
        return sys.modules["torch"].cat(parts) if is_tensor(first) else np.concatenate(parts)
    if isinstance(first, Mapping):
        if any(p.keys() != first.keys() for p in parts):
            raise NotReplayable(f"{where} has other keys in one batch than in another")
        return _mapping_like(first, {k: _join([p[k] for p in parts], counts, f"{where}[{k!r}]") for k in first})
    if isinstance(first, list | tuple):
        _check_not_packed(first, where)
        of_samples = zip(parts, counts, strict=True)
        if any(_is_rows(p, n) for p, n in of_samples) and all(len(p) == n for p, n in zip(parts, counts, strict=True)):
            return _sequence_like(first, [e for p in parts for e in p])
        if any(len(p) != len(first) for p in parts):
            raise NotReplayable(f"{where} is a list of another length in one batch than in another")
        items = [_join([p[i] for p in parts], counts, f"{where}[{i}]") for i in range(len(first))]
        return _sequence_like(first, items)
    if isinstance(first, _CONSTANT):
        return first
    raise NotReplayable(_opaque(first, where))


def _check_dense(x: Any, where: str) -> None:
    if is_tensor(x) and (x.is_sparse or x.is_nested or x.layout is not sys.modules["torch"].strided):
        raise NotReplayable(f"{where} is a sparse or nested tensor, which cannot be cut into samples; use a dense one")


def _check_not_packed(x: Any, where: str) -> None:
    if type(x).__name__ == "PackedSequence":
        raise NotReplayable(
            f"{where} is a PackedSequence, whose rows are time steps; let the loader give the padded tensor and the "
            "lengths, and pack them in the model"
        )


def _describe(x: Any) -> str:
    return f"{'a tensor' if is_tensor(x) else 'an array'} of shape {tuple(x.shape)}"


def _opaque(x: Any, where: str) -> str:
    return (
        f"{where} is of type {type(x).__module__}.{type(x).__qualname__}, which whyspike can neither cut into samples "
        "nor store without pickle; tensors, arrays, numbers and strings in dicts, lists and tuples can be"
    )


# --------------------------------------------------------------------------- storage


def flatten(tree: Any, prefix: str = "t", *, where: str = "the batch") -> tuple[Any, dict[str, Any]]:
    """Split a nested value into something that JSON can hold and its tensors and arrays by name.

    Returns:
        The JSON tree, and {name: tensor or array}; names are `prefix` and a number. The same object twice is
        stored once.

    Raises:
        NotReplayable: an object of another type is in it.
    """
    found: dict[str, Any] = {}
    seen: dict[int, str] = {}

    def node(x: Any, where: str) -> Any:
        if x is None or isinstance(x, bool | str) or type(x) in (int, float):
            return x
        if is_tensor(x) or isinstance(x, np.ndarray):
            _check_dense(x, where)
            if isinstance(x, np.ndarray) and x.dtype.kind not in "biuf":
                raise NotReplayable(f"{where} is an array of dtype {x.dtype}; numbers are needed to store it")
            name = seen.setdefault(id(x), f"{prefix}.{len(seen)}")
            found[name] = x
            return {"t": "tensor" if is_tensor(x) else "array", "n": name}
        if isinstance(x, np.generic) and x.dtype.kind in "biuf":
            return {"t": "scalar", "d": x.dtype.str, "v": x.item()}
        if isinstance(x, Mapping):
            kind = type(x).__name__ if type(x).__name__ in _MAPPINGS else "dict"
            for key in x:
                if not (key is None or isinstance(key, str | int | float | bool)):
                    raise NotReplayable(
                        f"{where} has a key of type {type(key).__name__}; strings and numbers can be stored"
                    )
            return {"t": kind, "k": list(x), "i": [node(v, f"{where}[{k!r}]") for k, v in x.items()]}
        if isinstance(x, tuple | list | deque | set):
            items = [node(v, f"{where}[{i}]") for i, v in enumerate(x)]
            if hasattr(x, "_fields"):
                cls = type(x)
                return {"t": "named", "c": [cls.__module__, cls.__qualname__, *x._fields], "i": items}  # type: ignore[attr-defined]
            kind = next(c.__name__ for c in (tuple, list, deque, set) if isinstance(x, c))
            return {"t": kind, "i": items}
        if isinstance(x, int | float):  # subclasses: an IntEnum, a numpy float
            return int(x) if isinstance(x, int) else float(x)
        raise NotReplayable(_opaque(x, where))

    return node(tree, where), found


def unflatten(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`. Code is never imported: an unknown named tuple class is rebuilt from its fields."""
    if not isinstance(tree, dict):
        return tree
    kind = tree["t"]
    if kind == "tensor":
        return tensors[tree["n"]]
    if kind == "array":
        found = tensors[tree["n"]]
        return found.numpy() if is_tensor(found) else found
    if kind == "scalar":
        return np.dtype(tree["d"]).type(tree["v"])
    items = [unflatten(i, tensors) for i in tree["i"]]
    if kind in _MAPPINGS:
        return (
            _MAPPINGS[kind](zip(tree["k"], items, strict=True))
            if kind != "Counter"
            else Counter(dict(zip(tree["k"], items, strict=True)))
        )
    if kind == "named":
        module, name, *fields = tree["c"]
        cls = getattr(sys.modules.get(module), name, None)
        if not (isinstance(cls, type) and getattr(cls, "_fields", None) == tuple(fields)):
            cls = namedtuple(name.rsplit(".", 1)[-1], fields)
        return cls(*items)
    return {"tuple": tuple, "list": list, "deque": deque, "set": set}[kind](items)
