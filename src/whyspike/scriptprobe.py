"""The loss of a script on fixed samples while it runs: its tape, played on a copy of its network.

The training must stay what it is, bit for bit, and code of the script must not be run twice where it could notice. So
the copy is what counts its calls or moves its statistics; the random generators are put back; and a network whose own
code reaches for something outside of itself is not copied at all. Where anything fails there is no probe from then on,
and the record says why.
"""

from __future__ import annotations

import builtins
import copy
import dis
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from whyspike.errors import BadTraining, NotReplayable
from whyspike.liveprobe import LiveProbe
from whyspike.tape import Tape

MOST_BYTES = 1 << 28  # of a network that is copied
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib"))
LEAVES_TRACES = frozenset({"print", "open", "input", "exec", "eval", "compile", "__import__", "globals"})
OUTSIDE = frozenset({"os", "sys", "io", "logging", "time", "subprocess", "shutil", "wandb", "warnings", "atexit"})
MUTATORS = frozenset(
    {"append", "extend", "insert", "update", "setdefault", "add", "pop", "popitem", "remove", "discard", "clear"}
    | {"write", "log", "put", "send", "step", "sort", "reverse", "appendleft", "register_buffer"}
)
CONSTANT = (
    int,
    float,
    str,
    bytes,
    bool,
    complex,
    type(None),
    tuple,
    frozenset,
    range,
    slice,
    torch.dtype,
    torch.device,
)


class ScriptProbe:
    """The mean loss on fixed batches, in eval mode, on a copy of the script's network.

    Args:
        tape: from a batch to the loss.
        model: the network that is trained.
        pieces: batches of training samples, of as many samples as the tape's; they are copied.

    Raises:
        NotReplayable: the network cannot be copied, or its code may do more than compute; the message says what.
    """

    def __init__(self, tape: Tape, model: nn.Module, pieces: Sequence[Any]) -> None:
        tops = list({id(m): m for m in (model, *tape.modules())}.values())
        reason = next((r for top in tops if (r := reaches_out(top)) is not None), None) or tape.reaches_out()
        if reason is not None:
            raise NotReplayable(reason)
        if sum(p.numel() * p.element_size() for p in model.parameters()) > MOST_BYTES:
            raise NotReplayable("the network is too large for a second one beside it")
        try:
            with torch.no_grad():
                copies = copy.deepcopy(tops)
        except Exception as error:
            raise NotReplayable(f"the network cannot be copied ({type(error).__name__}: {error})") from error
        for top in copies:
            for p in top.parameters():
                p.grad = None
        self._tops, self._copies = tops, copies
        swapped = tape.on({id(own): other for own, other in _pairs(tops, copies)})
        self._probe = LiveProbe(copies[0], swapped, pieces)

    def __call__(self) -> float:
        """Measure.

        Raises:
            BadTraining: it could not be measured.
        """
        try:
            with torch.no_grad():
                for own, other in zip(self._tops, self._copies, strict=True):
                    _follow(list(other.parameters()), list(own.parameters()))
                    _follow(list(other.buffers()), list(own.buffers()))
            return self._probe()
        except BadTraining:
            raise
        except Exception as error:
            raise BadTraining(f"the probe raised {type(error).__name__}: {error}") from error


def _follow(mine: list[Any], theirs: list[Any]) -> None:
    if mine:
        torch._foreach_copy_(mine, theirs)


def _pairs(tops: Sequence[nn.Module], copies: Sequence[nn.Module]) -> Iterator[tuple[Any, Any]]:
    for own, other in zip(tops, copies, strict=True):
        yield from zip(own.modules(), other.modules(), strict=True)
        yield from zip(own.parameters(), other.parameters(), strict=True)
        yield from zip(own.buffers(), other.buffers(), strict=True)


# --------------------------------------------------------------------------- what a network's code reaches for


def reaches_out(model: nn.Module) -> str | None:
    """Why running a copy of this network might be noticed outside of it; None where nothing says so.

    Code of installed libraries is trusted. Of the user's own, what `forward` may call is read, not run.
    """
    seen: set[int] = set()
    for module in model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(not type(hook).__module__.startswith("torch.") for hook in hooks):
            return f"{type(module).__name__} has forward hooks"
        for kind in type(module).__mro__:
            if kind is nn.Module or _of_library(sys.modules.get(kind.__module__)):
                break
            forward = vars(kind).get("forward")
            found = _outside(forward, kind, seen) if isinstance(forward, types.FunctionType) else None
            if found is not None:
                return f"{kind.__name__}.forward {found}"
    return None


def _of_library(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or typed at a prompt
        return module is not None and getattr(module, "__name__", "") in sys.builtin_module_names
    return file.startswith(LIBRARIES) or "site-packages" in file


def _outside(function: types.FunctionType, owner: type | None, seen: set[int]) -> str | None:
    """What a function of the user's reaches for outside of the network, itself and in what it calls."""
    if id(function) in seen:
        return None
    seen.add(id(function))
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    values = {k: cell.cell_contents for k, cell in held.items() if _filled(cell)}
    return _in_code(function.__code__, {**vars(builtins), **function.__globals__, **values}, owner, seen)


def _in_code(code: types.CodeType, known: Mapping[str, Any], owner: type | None, seen: set[int]) -> str | None:
    names = set(code.co_names)
    changes = bool(names & MUTATORS)
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            step.opname == "STORE_DEREF" and step.argval in code.co_freevars
        ):
            return f"sets {step.argval}"
        changes = changes or step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR")
    for name in sorted(names | set(code.co_freevars)):
        if name not in known:
            method = getattr(owner, name, None) if owner is not None else None
            if isinstance(method, types.FunctionType) and not _of_library(sys.modules.get(method.__module__)):
                found = _outside(method, owner, seen)
                if found is not None:
                    return found
            continue
        found = _value(name, known[name], names, changes, seen)
        if found is not None:
            return found
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found = _in_code(inner, known, owner, seen)
            if found is not None:
                return found
    return None


def _value(name: str, value: Any, names: set[str], changes: bool, seen: set[int]) -> str | None:
    """What is wrong with code that uses this value from outside of it."""
    if name in LEAVES_TRACES and value is getattr(builtins, name, None):
        return f"calls {name}()"
    if isinstance(value, types.ModuleType):
        if value.__name__.split(".")[0] in OUTSIDE:
            return f"uses {name}"
        if not _of_library(value):
            for inner in sorted(names):
                part = vars(value).get(inner)
                found = _outside(part, None, seen) if isinstance(part, types.FunctionType) else None
                if found is not None:
                    return found
        return None
    if isinstance(value, types.FunctionType):
        return None if _of_library(sys.modules.get(value.__module__)) else _outside(value, None, seen)
    if callable(value) and not isinstance(value, nn.Module):  # classes, built-in functions
        return None
    if isinstance(value, CONSTANT):
        return None
    if isinstance(value, torch.Generator | nn.Module):
        return f"uses {name}, which is not part of it"
    return f"may change {name}" if changes else None


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
