"""How a loss makes use of probabilities: the logarithm of a softmax, a softmax of a softmax, and their stable forms.

A mode watches the functions that a loss calls. It knows which tensors are probabilities and what the stable logarithm
of each would be; so it can say what is written there, make the network more certain of itself than it is, or put the
stable form in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Form = Literal["log of softmax", "softmax of softmax", "log of sigmoid", "cross-entropy of sigmoid"]
# -ln(clip): the largest loss of one sample where probabilities are clipped, and who clips so
FLOORS: dict[float, str] = {
    16.118: "1e-7, as Keras clips",
    13.816: "1e-6",
    18.421: "1e-8",
    23.026: "1e-10",
    27.631: "1e-12",
    34.539: "1e-15",
    100.0: "the clamp of torch.nn.BCELoss",
}
CERTAIN = 300.0  # spread of logits at which every probability but one is 0 in float32 (exp(-104) is)
_SAME_SHAPE = (
    "clamp",
    "clamp_min",
    "clip",
    "maximum",
    "max",
    "add",
    "radd",
    "nan_to_num",
    "detach",
    "clone",
    "float",
    "to",
)
_RESHAPING = (
    "getitem", "gather", "index_select", "select", "squeeze", "unsqueeze", "view", "reshape", "transpose", "permute",
    "flatten", "take_along_dim", "masked_select", "contiguous", "take", "diagonal",
)  # fmt: skip


def double_softmax_floor(classes: int) -> float:
    """The smallest loss that a cross-entropy of probabilities can reach: ln(1 + (C - 1) / e); 1.461 for 10 classes."""
    return float(torch.log1p(torch.tensor((classes - 1) / torch.e)))


def clip_of(loss: float, tolerance: float = 2e-3) -> str | None:
    """What probabilities are clipped at when the loss of one sample is stuck at this value; None for no such value."""
    return next((words for floor, words in FLOORS.items() if abs(loss - floor) < tolerance), None)


@dataclass(frozen=True)
class _Probability:
    """A tensor of probabilities: what they were made of, and their logarithm computed from it without underflow."""

    kind: Literal["softmax", "sigmoid"]
    logits: torch.Tensor
    log: Callable[[], torch.Tensor]
    tensor: torch.Tensor  # kept alive, so that its id stays its own
    complement: Callable[[], torch.Tensor] | None = None  # log(1 - p), for a sigmoid


class LossForms(TorchFunctionMode):
    """Watch a loss function. `forms` is what was found.

    Args:
        certain: scale the logits of every softmax and sigmoid up, so that the network is certain of itself.
        stable: put the stable form in the place of an unstable one.
    """

    def __init__(self, *, certain: bool = False, stable: bool = False) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.classes: int | None = None
        self._certain, self._stable = certain, stable
        self._known: dict[int, _Probability] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        args = tuple(args)
        if name in ("softmax", "sigmoid", "log_softmax", "logsigmoid", "log_sigmoid") and args:
            return self._squash(name, func, args, given)
        if name in ("cross_entropy", "cross_entropy_loss") and args:
            return self._cross_entropy(func, args, given)
        if name in ("binary_cross_entropy", "bce_loss") and args:
            return self._binary(func, args, given)
        if name == "binary_cross_entropy_with_logits" and args and self._certain:
            return func(self._more_certain(args[0]), *args[1:], **given)
        source = self._find(args)
        if source is None:
            return func(*args, **given)
        if name in ("log", "log2", "log10"):
            self._note("log of softmax" if source.kind == "softmax" else "log of sigmoid")
            if self._stable and name == "log":
                return source.log()
        out = func(*args, **given)
        self._follow(name, func, args, given, source, out)
        return out

    # ------------------------------------------------------------------ what is called

    def _squash(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        before = self._known.get(id(args[0]))
        logits = self._more_certain(args[0]) if self._certain and before is None else args[0]
        if before is not None and before.kind == "softmax" and name in ("softmax", "log_softmax"):
            self._note("softmax of softmax")
            if self._stable:
                logits = before.logits
        out = func(logits, *args[1:], **given)
        dim = given.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1)
        if name == "softmax":
            self.classes = int(logits.shape[dim])
            self._know(_Probability("softmax", logits, lambda: F.log_softmax(logits, dim=dim), out))
        elif name == "sigmoid":
            complement = lambda: F.logsigmoid(-logits)  # noqa: E731
            self._know(_Probability("sigmoid", logits, lambda: F.logsigmoid(logits), out, complement))
        return out

    def _cross_entropy(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        source = self._known.get(id(args[0]))
        first = args[0]
        if source is not None:
            self._note("softmax of softmax" if source.kind == "softmax" else "cross-entropy of sigmoid")
            first = source.logits if self._stable else first
        elif self._certain:
            first = self._more_certain(first)
        return func(first, *args[1:], **given)

    def _binary(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        source = self._known.get(id(args[0]))
        if source is None or source.kind != "sigmoid":
            return func(*args, **given)
        self._note("log of sigmoid")
        if self._stable:
            kept = {k: v for k, v in given.items() if k in ("weight", "reduction")}
            return F.binary_cross_entropy_with_logits(source.logits, args[1], **kept)
        return func(*args, **given)

    def _follow(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        given: dict[str, Any],
        source: _Probability,
        out: Any,
    ) -> None:
        """Whether the outcome is probabilities again."""
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return
        if name in _RESHAPING and args and args[0] is source.tensor:
            rest = args[1:]
            log, other = source.log, source.complement
            made = _Probability(
                source.kind,
                source.logits,
                lambda: func(log(), *rest, **given),
                out,
                None if other is None else lambda: func(other(), *rest, **given),
            )
            self._know(made)
        elif name in ("rsub", "sub") and source.complement is not None and out.shape == source.tensor.shape:
            self._know(_Probability("sigmoid", -source.logits, source.complement, out, source.log))
        elif name in _SAME_SHAPE and out.shape == source.tensor.shape:
            self._know(_Probability(source.kind, source.logits, source.log, out, source.complement))

    # ------------------------------------------------------------------ helpers

    def _find(self, args: Sequence[Any]) -> _Probability | None:
        return next((self._known[id(a)] for a in args if isinstance(a, torch.Tensor) and id(a) in self._known), None)

    def _know(self, made: _Probability) -> None:
        self._known[id(made.tensor)] = made

    def _note(self, form: Form) -> None:
        if form not in self.forms:
            self.forms.append(form)

    def _more_certain(self, logits: Any) -> Any:
        if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or not logits.numel():
            return logits
        spread = float((logits.detach().max() - logits.detach().min()).abs())
        return logits * (CERTAIN / spread) if spread > 0 else logits
