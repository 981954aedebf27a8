"""A capsule: the complete state of a training before one step, and the batches that follow.

Complete means that the steps after it can be run again bitwise: parameters, buffers, optimizer state and
hyperparameters, scheduler, scaler, every random generator, the thread count and every module's training flag. Leave
one out and the replay differs (X4 of the experiments: optimizer .10 nats, generators .18-.36, threads 1e-7).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim import Optimizer

from whyspike import batches, safefile
from whyspike.capsule_file import (
    FORMAT,
    KEY,
    VERSION,
    StepRecord,
    decode_steps,
    document_of,
    encode_steps,
    pack_rng,
    unpack_rng,
)
from whyspike.errors import NotReplayable
from whyspike.frozen import restore_rng, rng_state
from whyspike.safefile import TooLarge

__all__ = ["Capsule", "StepRecord", "TooLarge", "capture", "live_state", "load", "restore", "restore_optimizer", "save"]


@dataclass(frozen=True, kw_only=True)
class Capsule:
    """The complete state before `step`, and what was recorded of the steps that follow.

    `tensors` has the parameters as `param.<name>`, the buffers as `buffer.<name>`, and the tensors of optimizer,
    scheduler and scaler under the names that their trees refer to.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    devices: Mapping[str, str]  # of the tensors that were not on the CPU
    optimizer: Any  # JSON tree of {"state": {index of the parameter: …}, "groups": […], "other": {…}}
    scheduler: Any
    scaler: Any
    rng: Mapping[str, Any]
    threads: int
    training: tuple[str, ...]  # names of the modules in training mode
    frozen: tuple[str, ...]  # names of the parameters that require no gradient
    batch_size: int | None = None
    reasons: tuple[str, ...] = ()  # why it was kept: "event 17", "epoch end", "start", …
    steps: tuple[StepRecord, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether every parameter is finite."""
        return all(bool(torch.isfinite(t).all()) for name, t in self.tensors.items() if name.startswith("param."))


def capture(
    model: nn.Module, optimizer: Optimizer, scheduler: Any = None, scaler: Any = None, *, step: int = 0
) -> Capsule:
    """Copy the complete state into memory."""
    live = live_state(model, optimizer, scheduler, scaler, step=step)
    return replace(live, tensors={name: t.detach().clone() for name, t in live.tensors.items()})


def live_state(
    model: nn.Module, optimizer: Optimizer | None, scheduler: Any = None, scaler: Any = None, *, step: int = 0
) -> Capsule:
    """The complete state, its tensors not copied: they change with the training."""
    tensors: dict[str, torch.Tensor] = {f"param.{name}": p for name, p in model.named_parameters()}
    tensors.update((f"buffer.{name}", b) for name, b in model.named_buffers())
    trees = []
    for name, value in (
        ("optimizer", optimizer_state(optimizer)),
        ("scheduler", None if scheduler is None else scheduler.state_dict()),
        ("scaler", None if scaler is None else scaler.state_dict()),
    ):
        tree, found = _flatten_storable(value, name)
        trees.append(tree)
        tensors.update(found)
    return Capsule(
        step=step,
        tensors=tensors,
        devices={name: str(t.device) for name, t in tensors.items() if t.device.type != "cpu"},
        optimizer=trees[0],
        scheduler=trees[1],
        scaler=trees[2],
        rng=rng_state(),
        threads=torch.get_num_threads(),
        training=tuple(name for name, m in model.named_modules() if m.training),
        frozen=tuple(name for name, p in model.named_parameters() if not p.requires_grad),
    )


def optimizer_state(optimizer: Optimizer | None) -> dict[str, Any] | None:
    """State and hyperparameters, parameters by their number. The tensors are not copied."""
    # Not optimizer.state_dict(): loading one casts the state to the dtype of the parameter, which is not bitwise.
    if optimizer is None:
        return None
    index = {id(p): i for i, p in enumerate(_parameters(optimizer))}
    state = {index.get(id(key), key): value for key, value in optimizer.state.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return {"state": state, "groups": groups}


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _flatten_storable(value: Any, name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """`batches.flatten`, leaving out what cannot be stored (the functions of a LambdaLR, for one)."""
    try:
        tree, found = batches.flatten(value, name, where=f"the state of the {name}")
    except NotReplayable:
        if not isinstance(value, dict) or not value:
            raise
        kept = {}
        for number, (key, part) in enumerate(value.items()):
            try:
                kept[key] = batches.flatten(part, f"{name}.{number}")
            except NotReplayable:
                if name == "optimizer":
                    raise
        tree = {"t": "dict", "k": list(kept), "i": [t for t, _ in kept.values()]}
        found = {k: v for _, part in kept.values() for k, v in part.items()}
    return tree, {
        k: v if isinstance(v, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()
    }


def restore(
    capsule: Capsule, model: nn.Module, optimizer: Optimizer, scheduler: Any = None, scaler: Any = None
) -> None:
    """Bring everything to the state of the capsule, bitwise. The generators come last.

    Raises:
        NotReplayable: the model or the optimizer is another one than the capsule was taken from.
    """
    with torch.no_grad():
        _restore_model(capsule, model)
        if capsule.optimizer is not None:
            device_of = {id(t): capsule.devices.get(name, "cpu") for name, t in capsule.tensors.items()}
            restore_optimizer(batches.unflatten(capsule.optimizer, capsule.tensors), optimizer, device_of)
    for target, tree in ((scheduler, capsule.scheduler), (scaler, capsule.scaler)):
        if target is not None and tree is not None:
            target.load_state_dict(
                batches.unflatten(tree, {k: v.clone() for k, v in _of(tree, capsule.tensors).items()})
            )
    if torch.get_num_threads() != capsule.threads:
        torch.set_num_threads(capsule.threads)
    restore_rng(dict(capsule.rng))


def _of(tree: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that a tree refers to."""
    if not isinstance(tree, dict):
        return {}
    if "n" in tree:
        return {tree["n"]: tensors[tree["n"]]}
    return {k: v for item in tree.get("i", ()) for k, v in _of(item, tensors).items()}


def _restore_model(capsule: Capsule, model: nn.Module) -> None:
    for prefix, own in (("param.", dict(model.named_parameters())), ("buffer.", dict(model.named_buffers()))):
        theirs = {name[len(prefix) :]: t for name, t in capsule.tensors.items() if name.startswith(prefix)}
        odd = sorted(own.keys() ^ theirs.keys()) or [
            f"{k} of shape {tuple(own[k].shape)} (stored: {tuple(theirs[k].shape)})"
            for k in own
            if prefix == "param." and own[k].shape != theirs[k].shape
        ]
        if odd:
            raise NotReplayable(
                f"the model given is not the one that was recorded: it differs in {', '.join(odd[:3])}; give the model "
                "that watch() was given, or one that is built the same way"
            )
        same = [k for k in own if _alike(own[k], theirs[k])]
        if same:
            torch._foreach_copy_([own[k] for k in same], [theirs[k] for k in same])
        for k in own.keys() - set(same):
            if own[k].shape != theirs[k].shape:  # a buffer that grows
                own[k].resize_(theirs[k].shape)
            own[k].copy_(theirs[k])
    training = set(capsule.training)
    for name, module in model.named_modules():
        module.training = name in training
    still = set(capsule.frozen)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad is (name in still):
            parameter.requires_grad_(name not in still)


def restore_optimizer(
    stored: Mapping[str, Any], optimizer: Optimizer, device_of: Mapping[int, str] | None = None
) -> None:
    """Bring an optimizer to what `optimizer_state` returned, bitwise.

    Args:
        stored: its "groups" may be None, which leaves the hyperparameters as they are.
        device_of: of the tensors in `stored` by their id; without it those of a parameter go where that is.

    Raises:
        NotReplayable: the optimizer is another one.
    """
    parameters = _parameters(optimizer)
    groups: list[dict[str, Any]] | None = stored["groups"]
    if device_of is None:
        device_of = {
            id(t): str(parameters[k].device)
            for k, state in stored["state"].items()
            if isinstance(k, int) and k < len(parameters) and isinstance(state, dict)
            for t in state.values()
            if isinstance(t, torch.Tensor) and t.ndim
        }
    if (groups is not None and len(groups) != len(optimizer.param_groups)) or any(
        isinstance(k, int) and k >= len(parameters) for k in stored["state"]
    ):
        raise NotReplayable(
            f"the optimizer given has {len(optimizer.param_groups)} parameter groups over {len(parameters)} "
            "tensors, which are not those that were recorded; give the optimizer that watch() was given, or one built "
            "the same way"
        )
    wanted = {parameters[k] if isinstance(k, int) else k: v for k, v in stored["state"].items()}
    known = {id(key) for key in wanted}
    for key in [k for k in optimizer.state if id(k) not in known]:
        del optimizer.state[key]
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for key, value in wanted.items():
        optimizer.state[key] = _put(optimizer.state.get(key), value, device_of, pairs)
    for group, values in zip(optimizer.param_groups, [] if groups is None else groups, strict=groups is not None):
        for name in group.keys() - values.keys() - {"params"}:
            del group[name]
        for name, value in values.items():
            group[name] = _put(group.get(name), value, device_of, pairs)
    if pairs:
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def _put(old: Any, new: Any, device_of: Mapping[int, str], pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """`new`, in the memory of `old` where the tensors are alike: a copy is 8-16 times cheaper than a clone."""
    if isinstance(new, torch.Tensor):
        if isinstance(old, torch.Tensor) and _alike(old, new, device_of.get(id(new))):
            pairs.append((old, new))
            return old
        device = device_of.get(id(new), "cpu")
        return new.detach().clone().to(device if device == "cpu" or torch.cuda.is_available() else "cpu")
    if isinstance(new, dict):
        before = old if isinstance(old, dict) else {}
        return {k: _put(before.get(k), v, device_of, pairs) for k, v in new.items()}
    if type(new) is list:
        before = old if isinstance(old, list) and len(old) == len(new) else [None] * len(new)
        return [_put(o, v, device_of, pairs) for o, v in zip(before, new, strict=True)]
    return new


def _alike(own: torch.Tensor, stored: torch.Tensor, device: str | None = None) -> bool:
    where = own.device == stored.device or (device is not None and str(own.device) == device)
    return where and own.shape == stored.shape and own.dtype == stored.dtype


# --------------------------------------------------------------------------- on disk


def save(capsule: Capsule, path: Path, *, room: int | None = None) -> int:
    """Write the capsule as one safetensors file, all or nothing. Batches that cannot be stored are left out.

    Args:
        room: bytes that the file may have.

    Returns:
        The size of the file in bytes.

    Raises:
        TooLarge: it would have more; nothing was written.
        OSError: the disk is full, or the folder cannot be written.
    """
    try:
        steps, found = encode_steps(capsule.steps)
    except NotReplayable:
        steps, found = encode_steps(tuple(replace(s, batches=None) for s in capsule.steps))
    rng, generators = batches.flatten(pack_rng(capsule.rng), "rng")
    document = {
        "format": FORMAT, "version": VERSION, "step": capsule.step, "batch_size": capsule.batch_size,
        "reasons": list(capsule.reasons), "devices": dict(capsule.devices), "optimizer": capsule.optimizer,
        "scheduler": capsule.scheduler, "scaler": capsule.scaler, "rng": rng, "threads": capsule.threads,
        "training": list(capsule.training), "frozen": list(capsule.frozen), "steps": steps,
    }  # fmt: skip
    tensors = {name: _on_cpu(value) for name, value in {**capsule.tensors, **found, **generators}.items()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = safefile.write(temporary, tensors, {KEY: json.dumps(document)}, room=room)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _on_cpu(value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    value = value.detach().cpu()
    if value.is_conj() or value.is_neg():  # the bytes do not say so
        value = value.resolve_conj().resolve_neg()
    return value.contiguous()


def load(path: Path | str) -> Capsule:
    """Read a capsule.

    Raises:
        NotReplayable: the file is missing, damaged, or no capsule.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            document = document_of(file.metadata(), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise NotReplayable(f"{path} cannot be read as a capsule ({type(error).__name__}: {error})") from error
    # safe_open maps the file; a copy keeps the capsule when the file is replaced
    tensors = {name: t.clone() for name, t in tensors.items()}
    state = ("param.", "buffer.", "optimizer.", "scheduler.", "scaler.")
    rng = unpack_rng(batches.unflatten(document["rng"], tensors))
    assert rng is not None
    return Capsule(
        step=document["step"],
        tensors={name: t for name, t in tensors.items() if name.startswith(state)},
        devices=document["devices"],
        optimizer=document["optimizer"],
        scheduler=document["scheduler"],
        scaler=document["scaler"],
        rng=rng,
        threads=document["threads"],
        training=tuple(document["training"]),
        frozen=tuple(document["frozen"]),
        batch_size=document["batch_size"],
        reasons=tuple(document["reasons"]),
        steps=decode_steps(document["steps"], tensors),
    )
