"""Units in a batch (boxes, valid tokens, positives): what a loss may be divided by, and whether it is.

A divisor that is small in some batches makes their loss large: log loss then follows log units with a slope of -1
over batches of the same number of samples (cause B3). Which count a user divides by is not known, so every count that
the batch offers is a candidate, and the choice pays for itself: the null is the best of all candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike.cause import Units

if TYPE_CHECKING:
    import torch

MIN_ROWS = 12  # below this a 1 % permutation test of a correlation has no power to speak of
MIN_VARIATION = 0.02  # sd of log units; a candidate that varies less could not move a loss visibly
WINDOW = 5  # rows on either side of the running mean that takes the trend of the training out
N_PERMUTATIONS = 999
N_BOOTSTRAP = 500
LEVEL = 0.01  # of the test that any candidate follows the loss at all
MASK_KINDS = 2  # a float tensor with at most this many distinct values, 0 among them, is a mask
EACH = "[:]"  # in a name: all samples of a list with one tensor per sample
MASK_LOOKED_AT = 100_000  # entries read to find that out

Row = tuple[float, Mapping[str, float], int, int]  # loss, candidates, number of samples, step


def candidates(batch: Any, n: int) -> dict[str, float]:
    """Every count of a batch that a loss might be divided by, by a plain name.

    For each integer or boolean tensor (and each float tensor that is a mask of two values): its positive entries,
    and, where they differ from these, the non-zero ones, those other than -100 and the non-negative ones; for one
    integer per sample also their sum (lengths). For lists with one tensor per sample: the entries in all of them.

    Args:
        batch: tensors in any nesting of dicts, lists and tuples.
        n: samples in the batch.

    Returns:
        Counts by names such as "positives of batch[1]" or "entries of batch['labels'] other than -100". The names
        depend on the form of the batch alone, so that batches of one loader have the same.
    """
    found: dict[str, float] = {}
    for name, tensors in _tensors(batch, "batch", n):
        found.update(_counts(name, tensors, n))
    return found


def fit(
    rows: Sequence[Row], logged: Mapping[str, Mapping[int, float]], batch_size: int, *, seed: int = 0
) -> Units | None:
    """Find the count that the loss of full-size batches follows.

    The trend of the training is taken out first: a centred running mean of 11 rows is subtracted from log loss and
    from log units. The candidate with the largest |correlation| is kept when a permutation of the rows gives one as
    large, over all candidates, in at most 1 % of 999 draws.

    Args:
        rows: (loss, candidates, samples, step) of recorded batches.
        logged: whole-numbered signals that the user logged, value by step; counts such as boxes.
        batch_size: samples of a full batch; others are left out.

    Returns:
        The slope of log loss on log units with its 95 % bootstrap interval; None when nothing varies or follows.
    """
    full = sorted((r for r in rows if r[2] == batch_size and np.isfinite(r[0]) and r[0] > 0), key=lambda r: r[3])
    if len(full) < MIN_ROWS:
        return None
    series = _series(full, logged)
    y_all = _detrended(np.log([r[0] for r in full]))
    usable = {name: _detrended(np.log(v)) for name, v in series.items() if np.std(np.log(v)) > MIN_VARIATION}
    if not usable or np.std(y_all) == 0:
        return None
    x = np.array(list(usable.values()))  # [candidates, rows]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y_all / np.linalg.norm(y_all)
    r = x @ y
    rng = np.random.default_rng(seed)
    null = np.array([np.abs(x @ rng.permutation(y)).max() for _ in range(N_PERMUTATIONS)])
    best = int(np.argmax(np.abs(r)))
    if (1 + np.sum(null >= abs(r[best]))) / (N_PERMUTATIONS + 1) > LEVEL:
        return None
    name = list(usable)[best]
    u = usable[name]
    draws = []
    for _ in range(N_BOOTSTRAP):
        pick = rng.integers(len(u), size=len(u))
        if np.ptp(u[pick]) > 0:
            draws.append(_slope(u[pick], y_all[pick]))
    low, high = np.percentile(draws, [2.5, 97.5])
    every = {row[3]: float(row[1][name]) for row in rows if name in row[1]} or {
        int(step): float(value) for step, value in logged[name].items()
    }
    return Units(
        name=name,
        slope=_slope(u, y_all),
        interval=(float(low), float(high)),
        correlation=float(r[best]),
        by_step=every,
        typical=float(np.median(series[name])),
    )


def _series(full: Sequence[Row], logged: Mapping[str, Mapping[int, float]]) -> dict[str, np.ndarray]:
    """The candidates that every full batch has and that are positive throughout, none twice."""
    named: dict[str, list[float]] = {}
    for name in full[0][1]:
        if all(name in r[1] for r in full):
            named[name] = [float(r[1][name]) for r in full]
    for name, by_step in logged.items():
        if all(r[3] in by_step for r in full):
            values = [float(by_step[r[3]]) for r in full]
            if all(v == round(v) for v in values):
                named[name] = values
    kept: dict[str, np.ndarray] = {}
    for name, values in named.items():
        # An empty batch counts as one unit: the usual guard is max(1, units).
        column = np.maximum(np.array(values), 1.0)
        if np.all(np.isfinite(column)) and not any(np.array_equal(column, other) for other in kept.values()):
            kept[name] = column
    return kept


def _detrended(values: Sequence[float] | np.ndarray) -> np.ndarray:
    v = np.asarray(values, dtype=float)
    ends = np.concatenate([[0.0], np.cumsum(v)])
    at = np.arange(len(v))
    # Symmetric also at the ends, where a lopsided mean would leave the trend in; the outermost rows say nothing.
    half = np.minimum(WINDOW, np.minimum(at, len(v) - 1 - at))
    out = v - (ends[at + half + 1] - ends[at - half]) / (2 * half + 1)
    return out - out.mean()


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def _tensors(value: Any, name: str, n: int) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Every tensor of a batch with its name; a list with one tensor, or one dict, per sample gives them together."""
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor):
        yield name, [value]
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}[{key!r}]", n)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        for key in value[0]:
            inner = [v[key] for v in value if isinstance(v.get(key), torch.Tensor)]
            if len(inner) == len(value):
                yield f"{name}{EACH}[{key!r}]", inner
    elif isinstance(value, list | tuple) and _one_per_sample(value, n, nested="[" in name):
        yield f"{name}{EACH}", list(value)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{name}[{index}]", n)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}", n)


def _one_per_sample(value: Sequence[Any], n: int, *, nested: bool) -> bool:
    import torch

    if len(value) != n or not all(isinstance(v, torch.Tensor) for v in value) or len({v.dtype for v in value}) > 1:
        return False
    # [inputs, targets] of two samples is a batch of columns.
    return nested or not all(v.dim() and len(v) == n for v in value)


def _counts(name: str, tensors: list[torch.Tensor], n: int) -> dict[str, float]:
    import torch

    ragged = EACH in name
    out: dict[str, float] = {}
    if ragged:
        out[f"entries of {name}"] = float(sum(len(t) if t.dim() else 1 for t in tensors))
    whole = [t.detach() for t in tensors]
    if any(t.is_complex() for t in whole) or (whole[0].is_floating_point() and not all(map(_is_mask, whole))):
        return out
    if whole[0].dtype == torch.bool or whole[0].is_floating_point():
        out[f"positives of {name}"] = _total(whole, lambda t: t > 0)
        return out
    out[f"positives of {name}"] = _total(whole, lambda t: t > 0)
    out[f"non-zero entries of {name}"] = _total(whole, lambda t: t != 0)
    out[f"entries of {name} other than -100"] = _total(whole, lambda t: t != -100)
    out[f"non-negative entries of {name}"] = _total(whole, lambda t: t >= 0)
    if name.endswith("['labels']") and not ragged and whole[0].ndim == 2:
        # A language model shifts the labels itself: the first of a row is never predicted.
        out[f"entries of {name} other than -100, without the first"] = _total([whole[0][:, 1:]], lambda t: t != -100)
    if not ragged and whole[0].shape == (n,):
        out[f"sum of {name}"] = float(whole[0].sum())
    return out


def _total(tensors: list[torch.Tensor], select: Any) -> float:
    return float(sum(int(select(t).sum()) for t in tensors))


def _is_mask(tensor: torch.Tensor) -> bool:
    kinds = tensor.reshape(-1)[:MASK_LOOKED_AT].unique()
    return len(kinds) <= MASK_KINDS and bool((kinds >= 0).all()) and (len(kinds) < 2 or float(kinds[0]) == 0.0)
