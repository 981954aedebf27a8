"""The tape of a step whose batch comes from no loader: `x, y = get_batch()` somewhere in the loop, or one step ahead.

Recording waits for the first call that a gradient goes through; what the script computed before is not its business,
so it does not matter where a batch was drawn, or by what. The batch is then found on the way to the loss: it is what
enters the network, or what is made of it, without depending on it, and has one row for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from whyspike.tape import Input, Op, Recording, Slot, Tape, needed

NO_BATCH = "what enters the network has no rows, one for each sample"


class InlineRecording(Recording):
    """Records from the first call with a gradient to the loss that is asked for.

    Args:
        begins: called once, right before that call where it is a network's, else right after it.
    """

    def __init__(self, begins: Callable[[], None]) -> None:
        super().__init__((), 0)
        self._begins, self.waiting = begins, True
        self._outside: dict[int, torch.Tensor] = {}  # tensors without gradients that were made before, by their id
        self._made: list[torch.Tensor] = []  # what is in each slot

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.waiting or self._inside:
            return super().__torch_function__(func, types, args, kwargs)
        made = func(*args, **(kwargs or {}))
        results = made if isinstance(made, tuple | list) else (made,)
        if any(isinstance(t, torch.Tensor) and t.requires_grad and not t.is_leaf for t in results):
            context = self._begun()
            self._note(func, args, kwargs or {}, made, context)
        return made

    def _module(self, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        if self.waiting:
            if not (torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())):
                return self._past(module, original, args, kwargs)
            self._begun()
        return super()._module(module, original, args, kwargs)

    def _begun(self) -> tuple[Any, ...]:
        self.waiting = False
        self._inside += 1
        try:
            self._begins()
        finally:
            self._inside -= 1
        return self.context()

    def _external(self, value: torch.Tensor) -> None:
        if not value.requires_grad and not isinstance(value, nn.Parameter):
            self._outside[id(value)] = value

    def _keep(self, tensor: torch.Tensor) -> None:
        self._made.append(tensor)

    def found(self, loss: torch.Tensor) -> tuple[Tape, tuple[torch.Tensor, ...]] | str:
        """The tape of this loss and the batch that it begins with; or why there is none."""
        made = self.finish(loss, ())
        if isinstance(made, str):
            return made
        entering = list(self._entering())
        n = next((len(t) for t in entering if t.dim()), 0)
        parts = [t for t in entering if t.dim() and len(t) == n]
        if not n:
            return NO_BATCH
        names: dict[Any, Input] = {}
        for k, part in enumerate(parts):
            names[id(part)] = Input((("item", k),))
            slot = self._names.get(id(part))
            if type(slot) is Slot:
                names[slot] = names[id(part)]
        # What comes after the loss may draw the next batch. It is left out: the generators are noted in every step.
        last = next(k for k, op in enumerate(self.ops) if any(p.slot == made.root for p in op.parts))
        ops = needed([_renamed(op, names) for op in self.ops[: last + 1]], made.root)
        modified = any(op.writes is not None and op.writes < 0 for op in ops)
        return Tape(ops, made.root, n, modified), tuple(parts)

    def _entering(self) -> Iterator[torch.Tensor]:
        """Tensors that do not depend on the network, in calls that do, in the order of the calls; each once."""
        inside: set[int] = set()  # slots that depend on it
        seen: set[int] = set()
        for op in self.ops:
            leaves = list(_leaves((op.args, op.kwargs)))
            network = isinstance(op.call, nn.Module) and any(True for _ in op.call.parameters())
            depends = network or any(
                x.number in inside if type(x) is Slot else isinstance(x, torch.Tensor) and id(x) not in self._outside
                for x in leaves
            )
            if not depends:
                continue
            inside |= {p.slot for p in op.parts} | ({op.writes} if op.writes is not None else set())
            for x in leaves:
                tensor = self._made[x.number] if type(x) is Slot and x.number not in inside else x
                if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
                    continue
                if type(x) is Slot or id(x) in self._outside:
                    seen.add(id(tensor))
                    yield tensor


def _leaves(value: Any) -> Iterator[Any]:
    if type(value) in (tuple, list):
        for part in value:
            yield from _leaves(part)
    elif type(value) is dict:
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


def _renamed(op: Op, names: dict[Any, Input]) -> Op:
    def other(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(other(v) for v in value)
        if type(value) is dict:
            return {k: other(v) for k, v in value.items()}
        if type(value) is Slot:
            return names.get(value, value)
        return names.get(id(value), value)

    return replace(op, args=other(op.args), kwargs=other(op.kwargs))
