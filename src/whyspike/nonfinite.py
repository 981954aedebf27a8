"""Where the first value that is not finite comes from: step, module, operation, forward or backward, and which samples.

A step is run again with every operation watched: the first one whose inputs are all finite and whose output is not
made the value. (An infinity that is put in on purpose, as by an attention mask, is none; a NaN made of it is.) In the
forward pass that is looked at function by function (`torch.log`, `softmax`, `/`), in the backward pass node by node of
the graph, each of which is known by the operation and the module that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode, resolve_name

from whyspike import batches
from whyspike.errors import WhySpikeError
from whyspike.frozen import frozen
from whyspike.seams import Intervention, LossFn, StepContext

if TYPE_CHECKING:
    from whyspike.replay import Subject, Window


Place = Literal["forward", "backward", "update", "data", "before"]
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


@dataclass(frozen=True, kw_only=True)
class Located:
    """The first step of a training that made a value that is not finite, and how."""

    step: int
    origin: Origin
    samples: tuple[int, ...] = ()  # dataset indices of the origin's rows, where the loader gives them
    exact: float | None = None  # the loss of that batch in float64; None where it could not be had


class FirstBad(Intervention):
    """Changes nothing; notes the first step whose loss, gradients or updated weights are not finite."""

    words = "watched for values that are not finite"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.step: int | None = None
        self.in_update = False
        self._model = model

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        self._note(at, [loss.detach()])
        return loss

    def gradients(self, at: StepContext, model: nn.Module) -> None:
        self._note(at, [p.grad for p in model.parameters() if p.grad is not None])

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        if self.step is None:
            self._note(at, [p.detach() for p in self._model.parameters()])
            self.in_update = self.step is not None

    def _note(self, at: StepContext, tensors: Sequence[torch.Tensor]) -> None:
        if self.step is None and not all(bool(torch.isfinite(t).all()) for t in tensors):
            self.step = at.step


def find(subject: Subject, window: Window) -> Located | None:
    """Replay a window until the first value that is not finite, and say how it was made. Call it inside `kept()`.

    Returns:
        None where everything stays finite, or a step has several batches.
    """
    watch = FirstBad()
    subject.replay(window, watch)
    if watch.step is None:
        return None
    record = next(s for s in subject.capsule(window.path).steps if s.step == watch.step)
    if record.batches is None or len(record.batches) != 1:
        return None
    (batch,) = record.batches
    model, optimizer = subject.model, subject.optimizer
    origin: Origin | None
    if watch.in_update:
        subject.at(window, watch.step + 1)
        origin = bad_weights(model, "update", type(optimizer).__name__)
    else:
        subject.at(window, watch.step)
        with frozen(model, train_mode=None), torch.enable_grad():
            optimizer.zero_grad(set_to_none=True)
            origin = locate(model, subject.loss_fn, batches.clone(batch), n=record.n_samples)
            optimizer.zero_grad(set_to_none=True)
    if origin is None:
        return None
    rows = origin.rows
    if not rows and origin.place in ("forward", "backward"):
        with frozen(model, train_mode=None):
            rows = sample_of(model, subject.loss_fn, batch)
            optimizer.zero_grad(set_to_none=True)
        origin = replace(origin, rows=rows)
    known = () if record.ids is None else tuple(int(record.ids[r]) for r in rows if r < len(record.ids))
    subject.at(window, watch.step)
    return Located(step=watch.step, origin=origin, samples=known, exact=exact_loss(model, subject.loss_fn, batch))


def exact_loss(model: nn.Module, loss_fn: LossFn, batch: Any) -> float | None:
    """The loss of a batch in float64, by a copy of the network; None where it cannot be computed so."""
    try:
        with frozen(model, train_mode=None, seed=0):
            return float(loss_fn(deepcopy(model).double(), batches.to_float64(batch)))
    except Exception:
        return None


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

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, _: Any, __: Any) -> None:
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
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        if self.found is not None or not outputs:
            return out
        with torch._C.DisableTorchFunction():
            inputs = _tensors((args, dict(kwargs or {})))
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
            self._of[node] = owner
            waiting += [below for below, _ in node.next_functions]

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


def sample_of(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[int, ...]:
    """The rows whose loss alone is not finite, or makes a gradient that is not; all rows are tried one by one."""
    n = batches.size(batch)
    found = []
    for row in range(n):
        try:
            with torch.enable_grad():
                if locate(model, loss_fn, batches.take(batch, [row], n), n=1) is not None:
                    found.append(row)
        except (WhySpikeError, ValueError, RuntimeError):
            return ()
    return tuple(found) if len(found) < n else ()
