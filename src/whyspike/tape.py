"""The tape: how a script computes its loss from a batch, recorded in one step and run again on other batches.

A `TorchFunctionMode` notes the torch functions that are called between the batch and `backward()`; a network is one
call, made with the mode out of the way, so that what would disturb it (compiled regions, fast paths) never sees it. Run
again, the network is called anew, in whatever mode and with whatever weights it has then, and the functions around it
with what they were given.

A Python value that the script computed itself (a weight that depends on the step, a flipped coin) is a constant on the
tape. Nothing on it says so, so a tape is trusted only where the unchanged replay of the very window is bitwise the
record: see `tapedloss.trusted`. What was recorded is never run before the script has ended.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode_temporarily

from whyspike import batches
from whyspike.errors import NotReplayable

MOST_OPS = 4096  # between a batch and its loss; more means that no loss comes
# Functions whose first numbers are a shape that begins with the samples; `x.view(x.size(0), -1)` is the commonest.
SHAPED = frozenset(
    {
        "view",
        "reshape",
        "expand",
        "broadcast_to",
        "unflatten",
        "repeat",
        "randn",
        "rand",
        "randint",
        "randperm",
        "arange",
    }
    | {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"}
)
RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial", "uniform", "poisson", "exponential")


@dataclass(frozen=True)
class Slot:
    """What an earlier call on the tape returned."""

    number: int


@dataclass(frozen=True)
class Input:
    """A part of the batch, by the way that leads to it."""

    path: tuple[Any, ...]


@dataclass(frozen=True)
class Samples:
    """So many times the number of samples of the batch."""

    times: int


@dataclass(frozen=True)
class Part:
    """What a call returned, by the way that leads to the tensor in it."""

    path: tuple[Any, ...]
    slot: int


@dataclass
class Op:
    """One call."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: tuple[Any, ...]
    parts: list[Part] = field(default_factory=list)
    writes: int | None = None  # the slot of a tensor that is modified in place
    name: str = ""
    generators: tuple[tuple[torch.Generator, torch.Tensor], ...] = ()  # of the script's own, as they were before
    guard: bool | None = None  # what the script decided by

    def reads(self) -> set[int]:
        found: set[int] = set()
        _visit((self.args, self.kwargs), lambda x: found.add(x.number) if type(x) is Slot else None)
        return found


# --------------------------------------------------------------------------- recording


def compiles() -> bool:
    """Whether anything was compiled: a compiled region may not be entered under a mode."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return any(backend is not None for backend in getattr(frames, "cached_backends", {}).values())


class Recording(TorchFunctionMode):
    """Records from the batch that is handed over to the loss that is asked for.

    Args:
        batch: as the loader gave it.
        n: its samples.
    """

    def __init__(self, batch: Any, n: int) -> None:
        super().__init__()
        self.n, self.ops, self.reason = n, [], ""
        self._inside = 0
        self._names: dict[int, Any] = {}  # id of a tensor → Slot or Input
        self._held: list[Any] = [batch]  # an id says something only as long as its object lives
        self._slots = 0
        self._storages: dict[int, int] = {}
        self._original: Any = None
        for path, part in _walk(batch):
            self._names[id(part)] = Input(path)
        self._versions = batches.versions(batch)

    def start(self) -> None:
        """Begin to look. To be called when the batch is handed out."""
        recording, original = self, nn.Module.__call__
        self._original = original

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if recording._inside:
                return original(module, *args, **kwargs)
            return recording._module(module, original, args, kwargs)

        self._called = called
        nn.Module.__call__ = called  # type: ignore[method-assign]
        self.__enter__()

    def stop(self) -> bool:
        """Look no more. False where somebody else's mode lies above: try again later."""
        if nn.Module.__call__ is self._called:
            nn.Module.__call__ = self._original  # type: ignore[method-assign]
        self._inside = 1  # from here on everything passes
        if _get_current_function_mode() is not self:
            return False
        self.__exit__(None, None, None)
        return True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        context = self.context()
        own = tuple((g, g.get_state()) for g in (*args, *kwargs.values()) if type(g) is torch.Generator)
        self._inside += 1
        try:
            made = func(*args, **kwargs)
        finally:
            self._inside -= 1
        self._note(func, args, kwargs, made, context, own)
        return made

    def _module(self, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        context = self.context()
        made = self._past(module, original, args, kwargs)
        self._note(module, args, kwargs, made, context)
        return made

    def _past(self, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        """Call the module with the mode out of the way."""
        self._inside += 1
        try:
            ours = _get_current_function_mode() is self
            with _pop_mode_temporarily() if ours else nullcontext():
                return original(module, *args, **kwargs)
        finally:
            self._inside -= 1

    @staticmethod
    def context() -> tuple[Any, ...]:
        """Gradients and autocast, as they are now."""
        casts = tuple(
            (device, torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled())
            for device in ("cpu", "cuda", "mps")
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        )
        return torch.is_grad_enabled(), casts

    def _external(self, value: torch.Tensor) -> None:
        """A tensor that was not made on the tape."""

    def _keep(self, tensor: torch.Tensor) -> None:
        """A tensor that was: the next slot's."""

    def _note(
        self, call: Any, args: Any, kwargs: Any, made: Any, context: tuple[Any, ...], generators: Any = ()
    ) -> None:
        try:
            if len(self.ops) >= MOST_OPS:
                self.reason = f"more than {MOST_OPS} calls lie between a batch and its loss"
                return
            name = getattr(call, "__name__", type(call).__name__)
            parts = [(path, t) for path, t in _walk(made) if isinstance(t, torch.Tensor)]
            writes = self._written(name, args, kwargs)
            guard = bool(made) if name == "__bool__" else None
            if not parts and writes is None and guard is None:
                return
            given = self._named(tuple(args), name, top=True), self._named(dict(kwargs), "")
            op = Op(call, *given, context, [], writes, name, generators, guard)
            for path, tensor in parts:
                self._held.append(tensor)
                self._keep(tensor)
                op.parts.append(Part(path, self._slots))
                self._names[id(tensor)] = Slot(self._slots)
                self._slots += 1
            self.ops.append(op)
        except Exception as error:  # never into the script
            self.reason = f"a call of {call} could not be noted ({type(error).__name__}: {error})"

    def _written(self, name: str, args: Any, kwargs: Any) -> int | None:
        out = kwargs.get("out")
        inplace = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        target = out if isinstance(out, torch.Tensor) else args[0] if inplace and args else None
        if not isinstance(target, torch.Tensor):
            return None
        known = self._names.get(id(target))
        return known.number if type(known) is Slot else -1

    def _named(self, value: Any, name: str, *, top: bool = False) -> Any:
        """The value with tensors and parts of the batch replaced by what they are called on the tape."""
        if type(value) in (int, float, str, bool, type(None)):
            return value
        known = self._names.get(id(value))
        if known is not None:
            return known
        if isinstance(value, torch.Tensor):
            if value.requires_grad and not value.is_leaf:
                self.reason = "the loss uses a tensor with gradients that was computed before the batch was drawn"
            self._held.append(value)
            self._external(value)
            return value
        if type(value) in (list, tuple):
            made = [self._named(v, name) for v in value]
            if name in SHAPED and (name != "randint" or not top):
                made = self._sized(made)
            return type(value)(made)
        if type(value) is torch.Size:
            return tuple(self._sized(list(value)))
        if type(value) is dict:
            return {k: self._named(v, "") for k, v in value.items()}
        if type(value) is slice:
            return value
        self._held.append(value)
        return value

    def _sized(self, made: list[Any]) -> list[Any]:
        """The first number, where it is a multiple of the samples, as such."""
        for k, one in enumerate(made):
            if type(one) is int:
                if self.n > 1 and one and one % self.n == 0:
                    made[k] = Samples(one // self.n)
                break
            if not isinstance(one, Slot | Input | torch.Tensor):
                break
        return made

    def finish(self, loss: torch.Tensor, batch: Any) -> Tape | str:
        """The tape of this loss; or why there is none."""
        root = self._names.get(id(loss))
        if self.reason:
            return self.reason
        if type(root) is not Slot:
            return "the loss was not computed by torch functions from the batch that was drawn last"
        modified = batches.versions(batch) != self._versions
        return Tape(needed(self.ops, root.number), root.number, self.n, modified)


def needed(ops: Sequence[Op], root: int) -> list[Op]:
    """The calls that the loss depends on, with those that write into what it depends on, and those that draw."""
    wanted, storages = {root}, _aliases(ops)
    kept: list[Op] = []
    for op in reversed(ops):
        made = {p.slot for p in op.parts}
        writes = op.writes is not None and (
            op.writes < 0 or any(storages.get(op.writes) == storages.get(w) for w in wanted)
        )
        network = isinstance(op.call, nn.Module) and any(True for _ in op.call.parameters())
        decides = op.guard is not None and any(type(a) is Slot for a in op.args)
        if made & wanted or writes or network or decides or any(word in op.name for word in RANDOM):
            kept.append(op)
            wanted |= op.reads()
            if op.writes is not None and op.writes >= 0:
                wanted.add(op.writes)
    return kept[::-1]


def _aliases(ops: Sequence[Op]) -> dict[int, int]:
    """Slots that may share memory have the same number here: those of a call and of what it was given."""
    group: dict[int, int] = {}
    for op in ops:
        if isinstance(op.call, nn.Module):
            for part in op.parts:
                group.setdefault(part.slot, part.slot)
            continue
        given = [group.get(k, k) for k in op.reads()]
        for part in op.parts:
            group[part.slot] = min(given, default=part.slot)
    return group


# --------------------------------------------------------------------------- running it again


class Tape:
    """The calls from a batch to the loss.

    Args:
        ops: in their order.
        root: the slot of the loss.
        n: samples of the recorded batch.
        modified: whether they modify the batch.
    """

    def __init__(self, ops: list[Op], root: int, n: int, modified: bool) -> None:
        self.ops, self.root, self.n, self.modified = ops, root, n, modified
        self.divisor: int | None = None

    def generators(self) -> list[torch.Generator]:
        """The script's own ones that it draws from."""
        return [generator for op in self.ops for generator, _ in op.generators]

    def modules(self) -> list[nn.Module]:
        """Those that are called."""
        return [op.call for op in self.ops if isinstance(op.call, nn.Module)]

    def reaches_out(self) -> str | None:
        """Why playing it might be noticed by the script; None where nothing says so."""
        if self.modified or any(op.writes is not None and op.writes < 0 for op in self.ops):
            return "the script writes into a tensor of its own on the way to the loss"
        return "the script draws from a generator of its own" if self.generators() else None

    def on(self, others: Mapping[int, Any]) -> Tape:
        """The same with other objects (modules, tensors) in the place of some, by their id."""

        def other(value: Any) -> Any:
            if type(value) in (tuple, list):
                return type(value)(other(v) for v in value)
            if type(value) is dict:
                return {k: other(v) for k, v in value.items()}
            return others.get(id(value), value)

        ops = [replace(o, call=other(o.call), args=other(o.args), kwargs=other(o.kwargs)) for o in self.ops]
        made = Tape(ops, self.root, self.n, self.modified)
        made.divisor = self.divisor
        return made

    def names_its_size(self) -> bool:
        """Whether a number that the script computed with is just that of the samples, so that it may mean it."""
        found: list[bool] = []
        for op in self.ops:
            if not isinstance(op.call, nn.Module):
                _visit((op.args, op.kwargs), lambda x: found.append(type(x) in (int, float) and x == self.n))
        return self.n > 1 and any(found)

    def divided_by(self) -> int | None:
        """By which whole number the script divides the loss at last, as for accumulated gradients; None without."""
        if not self.ops or not any(p.slot == self.root for p in self.ops[-1].parts):
            return None
        last = self.ops[-1]
        if last.name in ("div", "__truediv__", "true_divide") and len(last.args) == 2 and type(last.args[0]) is Slot:
            number = last.args[1]
            return int(number) if isinstance(number, int | float) and number > 1 and number == int(number) else None
        return None

    def undivided(self) -> Tape:
        """The same without the last division."""
        made = Tape(self.ops[:-1], self.ops[-1].args[0].number, self.n, self.modified)
        made.divisor = self.divided_by()
        return made

    def rows(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The loss of this batch, and what its last call gives with `reduction="none"`; None where it has no such."""
        at = next(k for k, op in enumerate(self.ops) if any(p.slot == self.root for p in op.parts))
        single = _unreduced(self.ops[at])
        if single is None:
            return None
        whole, caught = self.ops[at].call, []

        def both(*args: Any, **kwargs: Any) -> Any:
            caught.append(single(*args, **kwargs))
            return whole(*args, **kwargs)

        ops = [*self.ops[:at], replace(self.ops[at], call=both), *self.ops[at + 1 :]]
        return Tape(ops, self.root, self.n, self.modified)(model, batch), caught[0]

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of this batch on the network as it is now."""
        batch = batches.clone(batch) if self.modified else batch
        n = batches.size(batch)
        slots: dict[int, Any] = {}

        def real(value: Any) -> Any:
            kind = type(value)
            if kind is Slot:
                return slots[value.number]
            if kind is Input:
                return _follow(batch, value.path)
            if kind is Samples:
                return value.times * n
            if kind is tuple or kind is list:
                return kind(real(v) for v in value)
            if kind is dict:
                return {k: real(v) for k, v in value.items()}
            return value

        for context, ops in _grouped(self.ops):
            with _restored(context):
                for op in ops:
                    for generator, state in op.generators:
                        generator.set_state(state)
                    made = op.call(*real(op.args), **real(op.kwargs))
                    if op.guard is not None and bool(made) is not op.guard:
                        raise NotReplayable(
                            "the script decides by a number on its way to the loss, and would go another"
                        )
                    for part in op.parts:
                        slots[part.slot] = _follow(made, part.path)
        return slots[self.root]


def _unreduced(op: Op) -> Callable[..., Any] | None:
    """The call of an op with `reduction="none"`; None where it takes no such argument."""
    if isinstance(op.call, nn.Module):
        if not hasattr(op.call, "reduction") or any(True for _ in op.call.parameters()):
            return None
        module = copy.copy(op.call)
        module.reduction = "none"  # type: ignore[assignment]
        return module
    try:
        names = list(inspect.signature(op.call).parameters)
    except (TypeError, ValueError):
        return None
    old = any(op.kwargs.get(name) is not None for name in ("reduce", "size_average"))
    if "reduction" not in names or len(op.args) > names.index("reduction") or old:
        return None
    return lambda *args, **kwargs: op.call(*args, **{**kwargs, "reduction": "none"})


def _grouped(ops: Sequence[Op]) -> Iterator[tuple[tuple[Any, ...], list[Op]]]:
    """Neighbours with equal contexts together: an autocast region caches the weights that it has cast."""
    group: list[Op] = []
    for op in ops:
        if group and op.context != group[0].context:
            yield group[0].context, group
            group = []
        group.append(op)
    if group:
        yield group[0].context, group


@contextmanager
def _restored(context: tuple[Any, ...]) -> Iterator[None]:
    grad, casts = context
    with nullcontext() if grad else torch.no_grad():
        if not casts:
            yield
            return
        device, dtype, cache = casts[0]
        with torch.autocast(device, dtype=dtype, cache_enabled=cache):
            yield


# --------------------------------------------------------------------------- nests of values


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every tensor, array and container in a nest, with the way to it; a way is made of keys, places and names."""
    if isinstance(value, torch.Tensor | np.ndarray):
        yield path, value
    elif isinstance(value, Mapping):
        yield path, value
        for key in value:
            yield from _walk(value[key], (*path, ("item", key)))
    elif isinstance(value, list | tuple):
        if value:
            yield path, value
        for k, part in enumerate(value):
            yield from _walk(part, (*path, ("item", k)))
    elif value is not None and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and len(path) < 3:
        yield path, value
        for name, part in list(vars(value).items()):
            if isinstance(part, torch.Tensor | list | tuple | dict):
                yield from _walk(part, (*path, ("attribute", name)))


def _follow(value: Any, path: tuple[Any, ...]) -> Any:
    for kind, key in path:
        value = value[key] if kind == "item" else getattr(value, key)
    return value


def _visit(value: Any, look: Callable[[Any], Any]) -> None:
    if type(value) in (tuple, list):
        for part in value:
            _visit(part, look)
    elif type(value) is dict:
        for part in value.values():
            _visit(part, look)
    else:
        look(value)
