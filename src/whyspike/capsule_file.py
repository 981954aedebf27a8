"""What a capsule looks like on disk, and how to look into one with numpy alone.

A capsule is one safetensors file: every tensor by name, and one JSON document in the header's metadata under the key
`whyspike`. There is no pickle in it, so that looking executes nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike import batches
from whyspike.boundary import Boundary
from whyspike.errors import NotReplayable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer

FORMAT = "whyspike-capsule"
VERSION = 1
KEY = "whyspike"

# dtype names of the safetensors format that numpy has, too
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What was recorded of one optimizer step that follows a snapshot."""

    step: int
    epoch: int
    index: int  # position in the epoch, from 0
    n_samples: int  # of all micro-batches together; 0 when not known
    ids: np.ndarray | None  # int64, dataset indices in batch order
    hyper: tuple[Mapping[str, Any], ...] | None  # of every parameter group, as the update used them
    clip: float | None  # max_norm of the user's own clip_grad_norm_ in this step; None when there was none
    loss: float
    rng: Mapping[str, Any] | None  # generators after the batch was drawn; None when the loader drew nothing from them
    batches: tuple[Any, ...] | None  # the micro-batches; None when they are not stored
    later_rng: tuple[Mapping[str, Any] | None, ...] = ()  # as `rng`, of the second micro-batch and those after it
    boundary: Boundary | None = None  # what happened between the step before and this one

    def prepare(self, optimizer: Optimizer) -> None:
        """Set the hyperparameters of this step, and the generators if drawing the batch used them."""
        for group, values in zip(optimizer.param_groups, self.hyper or (), strict=False):
            for key, value in values.items():
                if batches.is_tensor(group.get(key)):
                    group[key].fill_(value)
                else:
                    group[key] = value
        if self.rng is not None:
            from whyspike.rngnotes import restore

            restore(dict(self.rng))

    def drawn(self) -> Iterator[Any]:
        """Copies of the micro-batches, one after the other; the generators are what they were after each was drawn."""
        for k, batch in enumerate(self.batches or ()):
            if 0 < k <= len(self.later_rng) and (state := self.later_rng[k - 1]) is not None:
                from whyspike.rngnotes import restore

                restore(dict(state))
            yield batches.clone(batch)


@dataclass(frozen=True, kw_only=True)
class Peek:
    """A capsule as numpy sees it: no weights, no generators, `batches` hold arrays in place of tensors."""

    step: int
    batch_size: int | None
    reasons: tuple[str, ...]
    steps: tuple[StepRecord, ...]


def encode_steps(steps: tuple[StepRecord, ...]) -> tuple[list[Any], dict[str, Any]]:
    """The JSON of the steps, and their tensors and arrays by name.

    Raises:
        NotReplayable: a batch holds an object that cannot be stored; call it again with `batches=None`.
    """
    documents, tensors = [], {}
    hypers: dict[int, Any] = {}
    for record in steps:
        at = f"step.{record.step}"
        document: dict[str, Any] = {
            "step": record.step, "epoch": record.epoch, "index": record.index, "n_samples": record.n_samples,
            "clip": record.clip, "loss": record.loss, "ids": record.ids is not None,
        }  # fmt: skip
        if record.ids is not None:
            tensors[f"{at}.ids"] = record.ids
        if id(record.hyper) not in hypers:  # one object for as long as nothing changes
            hypers[id(record.hyper)] = batches.flatten(record.hyper)[0]
        document["hyper"] = hypers[id(record.hyper)]
        for key, value in (("rng", pack_rng(record.rng)), ("batches", record.batches)):
            document[key], found = batches.flatten(value, f"{at}.{key}")
            tensors.update(found)
        if any(state is not None for state in record.later_rng):
            packed = [pack_rng(state) for state in record.later_rng]
            document["later_rng"], found = batches.flatten(packed, f"{at}.later_rng")
            tensors.update(found)
        if record.boundary is not None:
            document["boundary"], found = record.boundary.encode(f"{at}.boundary")
            tensors.update(found)
        documents.append(document)
    return documents, tensors


def decode_steps(documents: list[Any], tensors: Mapping[str, Any], *, rng: bool = True) -> tuple[StepRecord, ...]:
    """The inverse of `encode_steps`. With rng=False the generators and the boundaries are left out."""
    found = []
    for document in documents:
        ids = tensors[f"step.{document['step']}.ids"] if document["ids"] else None
        later, boundary = (document.get(k) if rng else None for k in ("later_rng", "boundary"))
        found.append(
            StepRecord(
                step=document["step"],
                epoch=document["epoch"],
                index=document["index"],
                n_samples=document["n_samples"],
                clip=document["clip"],
                loss=document["loss"],
                ids=ids if ids is None or isinstance(ids, np.ndarray) else ids.numpy(),
                hyper=batches.unflatten(document["hyper"], tensors),
                rng=unpack_rng(batches.unflatten(document["rng"], tensors)) if rng else None,
                batches=batches.unflatten(document["batches"], tensors),
                later_rng=tuple(unpack_rng(s) for s in batches.unflatten(later, tensors) or ()),
                boundary=None if boundary is None else Boundary.decode(boundary, tensors),
            )
        )
    return tuple(found)


def pack_rng(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Generator states with Python's 625 integers as one array."""
    if state is None or "python" not in state:
        return None if state is None else dict(state)
    version, numbers, gauss = state["python"]
    return {**state, "python": [version, np.array(numbers, dtype=np.uint32), gauss]}


def unpack_rng(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The inverse of `pack_rng`."""
    if state is None or "python" not in state:
        return None if state is None else dict(state)
    version, numbers, gauss = state["python"]
    return {**state, "python": (version, tuple(int(n) for n in numbers), gauss)}


def peek(path: Path | str) -> Peek:
    """Read the steps of a capsule and their batches, without torch; generators and boundaries are left out.

    Raises:
        NotReplayable: the file is not a capsule, or is damaged.
    """
    document, tensors = read_numpy(Path(path), prefix="step.")
    return Peek(
        step=document["step"],
        batch_size=document["batch_size"],
        reasons=tuple(document["reasons"]),
        steps=decode_steps(document["steps"], tensors, rng=False),
    )


def document_of(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """The JSON document in a safetensors header.

    Raises:
        NotReplayable: it is not that of a capsule.
    """
    text = (metadata or {}).get(KEY)
    document = json.loads(text) if text else {}
    if document.get("format") != FORMAT:
        raise NotReplayable(f"{path} is a safetensors file, but no capsule of whyspike")
    if document.get("version") != VERSION:
        raise NotReplayable(
            f"{path} has format version {document.get('version')}; this whyspike reads version {VERSION}"
        )
    return document


def read_numpy(path: Path, prefix: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The document, and the arrays whose names begin with `prefix`, except generators."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:  # the limit of the format
                raise ValueError("the header is too long")
            header = json.loads(file.read(length))
            start = 8 + length
            document = document_of(header.pop("__metadata__", None), path)
            found = {}
            for name, entry in header.items():
                if name.startswith(prefix):
                    begin, end = entry["data_offsets"]
                    file.seek(start + begin)
                    found[name] = _array(entry, file.read(end - begin))
    except (OSError, ValueError, struct.error, KeyError, AttributeError) as error:
        raise NotReplayable(f"{path} cannot be read as a capsule ({type(error).__name__}: {error})") from error
    return document, found


def _array(entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    if entry["dtype"] == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(entry["shape"])
    return np.frombuffer(data, dtype=_NUMPY.get(entry["dtype"], "u1")).reshape(
        entry["shape"] if entry["dtype"] in _NUMPY else -1
    )
