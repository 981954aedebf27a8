"""Where the first value that is not finite comes from: step, module, operation, forward or backward, and which samples.

A step is run again with every operation watched: the first one whose inputs are all finite and whose output is not
made the value. (An infinity that is put in on purpose, as by an attention mask, is none; a NaN made of it is.) In the
forward pass that is looked at function by function (`torch.log`, `softmax`, `/`), in the backward pass node by node of
the graph, each of which is known by the operation and the module that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name

from whyspike import batches
from whyspike.seams import LossFn

Place = Literal["forward", "backward", "update", "data", "before", "outside"]
# functions that put an infinity in because they were told to
MASKS = frozenset(
    {"masked_fill", "masked_fill_", "where", "full", "full_like", "fill", "new_full", "tensor", "setitem"}
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The operation that made the first value that is not finite.

    `rows` are the samples of the batch in which it appeared first; empty where that cannot be told.
    """

    place: Place
    module: str  # its name in the model, "" outside of it (in the loss function)
    kind: str  # the class of the module, "" outside
    operation: str  # "log", "div", "cross_entropy", …
    value: Literal["inf", "nan"]
    rows: tuple[int, ...] = ()
    dtype: str = ""  # of the operation's output
    largest_input: float = 0.0  # the largest size of a finite input
    smallest_input: float = 0.0

    @property
    def words(self) -> str:
        """Where it was, as a reader would say it."""
        if self.place == "data":
            return "in the batch itself"
        if self.place == "outside":
            return "by none of the recorded steps: run again, they stay finite"
        if self.place == "before":
            return f"in the weights of module {self.module} ({self.kind}), from before this step"
        if self.place == "update":
            return f"{self.operation}.step() made it of finite gradients, in the weights of {self.module} ({self.kind})"
        inside = f"module {self.module} ({self.kind})" if self.module else "the loss function"
        return f"{self.operation} in {inside}, {self.place} pass"


def locate(model: nn.Module, loss_fn: LossFn, batch: Any, *, n: int | None = None) -> Origin | None:
    """Run one step's forward and backward pass and find where the first value that is not finite is made.

    Gradients are left in `p.grad`, as a step leaves them. Nothing else changes; call it inside `frozen` or on a copy.

    Args:
        n: samples in the batch; counted when not given.

    Returns:
        None when everything is finite.
    """
    n = batches.size(batch) if n is None else n
    bad = _bad_data(batch, n) or bad_weights(model, "before")
    if bad is not None:
        return bad
    watch = _Watch(model, n)
    with watch.modules(), watch:
        loss = loss_fn(model, batch)
    if watch.found is None and loss.requires_grad:
        watch.backward(loss)
    return watch.found


def bad_weights(model: nn.Module, place: Place, operation: str = "") -> Origin | None:
    """The first parameter that holds a value that is not finite."""
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if not bool(torch.isfinite(parameter).all()):
                kind = type(module).__name__
                value = parameter.detach()
                return Origin(
                    place=place,
                    module=name or kind,
                    kind=kind,
                    operation=operation,
                    value=_value(value),
                    dtype=_dtype(value),
                )
    return None


def _bad_data(batch: Any, n: int) -> Origin | None:
    found: list[Origin] = []

    def look(t: Any) -> None:
        values = torch.as_tensor(t)
        if not found and values.is_floating_point() and not bool(torch.isfinite(values).all()):
            found.append(
                Origin(
                    place="data",
                    module="",
                    kind="",
                    operation="the data",
                    value=_value(values),
                    rows=_rows(values, n),
                    dtype=_dtype(values),
                )
            )

    batches.walk(batch, look, look)
    return found[0] if found else None


class _Watch(TorchFunctionMode):
    """Looks at every function of the forward pass, and remembers which of them each node of the graph belongs to."""

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.found: Origin | None = None
        self._n = n
        self._names = {id(m): name for name, m in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._of: dict[Any, tuple[str, str, str]] = {}  # node of the graph → module, its class, operation
        self._depth = 0

    # ------------------------------------------------------------------ which module

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Keep the stack of modules that are being called."""

        def enter(module: nn.Module, given: Any) -> None:
            self._claim_own(given)
            self._stack.append(module)

        def leave(module: nn.Module, _: Any, made: Any) -> None:
            self._claim_own(made)
            while self._stack and self._stack.pop() is not module:
                pass

        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _module(self) -> tuple[str, str]:
        for module in reversed(self._stack):
            name = self._names.get(id(module))
            if name is not None:
                return name or type(module).__name__, type(module).__name__
        return "", ""

    # ------------------------------------------------------------------ forward

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = _tensors((args, dict(kwargs or {})))
        if self.found is None and _in_place(func, kwargs):  # they will be gone
            with torch._C.DisableTorchFunction():
                inputs = [t.detach().clone() for t in inputs]
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        if self.found is not None or not outputs:
            return out
        # Without a graph: what looks must save nothing for a backward pass, or a checkpoint counts one tensor too many.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            module, kind = self._module()
            operation = _operation(func)
            for t in outputs:
                if t.grad_fn is not None:
                    self._claim(t.grad_fn, (module, kind, operation))
            bad = _made(outputs, inputs, masks=operation in MASKS)
            if bad is not None:
                self.found = self._origin("forward", module, kind, operation, bad, inputs)
        return out

    def _claim(self, node: Any, owner: tuple[str, str, str]) -> None:
        """The nodes that a function has made belong to it: those below its output that nobody owns yet."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._of or type(node).__name__ == "AccumulateGrad":
                continue
            self._of[node] = owner if (own := _own_function(node)) is None else (*owner[:2], own)
            waiting += [below for below, _ in node.next_functions]

    def _claim_own(self, values: Any) -> None:
        """Nodes of a user's own `torch.autograd.Function`, which no mode sees, belong to the module that called it."""
        for t in _tensors(values):
            if t.grad_fn is not None and (own := _own_function(t.grad_fn)) is not None:
                self._claim(t.grad_fn, (*self._module(), own))

    # ------------------------------------------------------------------ backward

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass with every node watched."""
        handles = [node.register_hook(self._hook(node)) for node in self._of]
        try:
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, node: Any) -> Callable[[Any, Any], None]:
        def look(made: Any, given: Any) -> None:
            if self.found is not None:
                return
            outputs, inputs = _tensors(made), _tensors(given)
            bad = _made(outputs, inputs, masks=False)
            if bad is not None:
                self.found = self._origin("backward", *self._of[node], bad, inputs)

        return look

    def _origin(
        self,
        place: Place,
        module: str,
        kind: str,
        operation: str,
        bad: torch.Tensor,
        inputs: Sequence[torch.Tensor],
    ) -> Origin:
        sizes = [t.detach().abs() for t in inputs if t.is_floating_point() and t.numel()]
        return Origin(
            place=place,
            module=module,
            kind=kind,
            operation=operation,
            value=_value(bad),
            rows=_rows(bad, self._n),
            dtype=_dtype(bad),
            largest_input=max((float(s.max()) for s in sizes), default=0.0),
            smallest_input=min((float(s.min()) for s in sizes), default=0.0),
        )


def _made(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], *, masks: bool) -> torch.Tensor | None:
    """The output that holds a NaN where no input does, or an infinity where all inputs are finite."""
    bad = next((t for t in outputs if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)
    if bad is None:
        return None
    given = [t for t in inputs if t.is_floating_point()]
    if bool(torch.isnan(bad).any()):
        return bad if not any(bool(torch.isnan(t).any()) for t in given) else None
    return bad if not masks and all(bool(torch.isfinite(t).all()) for t in given) else None


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [t for v in tree.values() for t in _tensors(v)]
    if isinstance(tree, list | tuple):
        return [t for v in tree for t in _tensors(v)]
    return []


def _operation(func: Callable[..., Any]) -> str:
    """The function's name as a user writes it: "log", "div", "cross_entropy"."""
    name = getattr(func, "__name__", "") or (resolve_name(func) or "").rsplit(".", 1)[-1]
    if name in ("__get__", "__set__", "wrapped"):
        name = (resolve_name(func) or name).rsplit(".", 2)[-2]
    return {"cross_entropy_loss": "cross_entropy", "truediv": "div", "true_divide": "div"}.get(
        name.strip("_"), name.strip("_")
    )


def _in_place(func: Callable[..., Any], kwargs: Mapping[str, Any] | None) -> bool:
    """Whether a function may write into its arguments: `div_`, `/=`, `x[k] = y`, `out=`."""
    name = getattr(func, "__name__", "")
    operator = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    own = name.endswith("_") and not name.endswith("__")
    return own or operator or name == "__setitem__" or bool((kwargs or {}).get("out") is not None)


def _own_function(node: Any) -> str | None:
    """The name of the `torch.autograd.Function` that made a node of the graph; None for torch's own nodes."""
    made = isinstance(node, torch.autograd.function.BackwardCFunction)
    return type(node).__name__.removesuffix("Backward") if made else None


def _rows(values: torch.Tensor, n: int) -> tuple[int, ...]:
    """The rows with a value that is not finite, where the first dimension is the batch's and not all rows have one."""
    if values.ndim == 0 or values.shape[0] != n:
        return ()
    bad = ~torch.isfinite(values.detach().reshape(n, -1)).all(1)
    rows = torch.nonzero(bad).flatten().tolist()
    return tuple(rows) if len(rows) < n or n == 1 else ()


def _value(values: torch.Tensor) -> Literal["inf", "nan"]:
    return "nan" if bool(torch.isnan(values).any()) else "inf"


def _dtype(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
