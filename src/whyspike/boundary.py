"""What happened between two steps that no step does: an evaluation's leavings, a loaded state, a target's new weights.

A `Boundary` belongs to the step whose forward pass comes after it. The recorder notes it, a capsule holds it, and a
replay re-enacts it, or leaves a part of it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from whyspike import batches

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Part = Literal["weights", "buffers", "target", "modes", "optimizer", "rng"]
PARTS: tuple[Part, ...] = ("weights", "buffers", "target", "modes", "optimizer", "rng")


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """The new values of what changed between two steps, tensors by their name in the model.

    `optimizer` is {"state": {index of the parameter: …}, "groups": […] or None for unchanged ones}: the complete state
    as it was after the change, {} where it was lost.
    """

    weights: Mapping[str, Any] = field(default_factory=dict)  # parameters that the optimizer trains
    buffers: Mapping[str, Any] = field(default_factory=dict)
    # Parameters that the optimizer does not train: their new values, or the name of the trained parameter that they are
    # a copy of, bitwise: then a replay copies that one as it is by then.
    target: Mapping[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] | None = None  # names of all modules in training mode; None: as before
    optimizer: Mapping[str, Any] | None = None
    rng: Mapping[str, Any] | None = None  # generators, where no batch was drawn afterwards
    partial: bool = False  # values were too large to keep: a replay cannot be bitwise

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of it is there."""
        return tuple(p for p in PARTS if getattr(self, p) not in (None, {}))

    def without(self, *parts: Part) -> Boundary:
        """The same with these parts left out: as before the boundary."""
        nothing: dict[str, Any] = {p: ({} if p in ("weights", "buffers", "target") else None) for p in parts}
        return replace(self, **nothing)

    def and_then(self, later: Boundary) -> Boundary:
        """Both, one after the other."""
        return Boundary(
            weights={**self.weights, **later.weights},
            buffers={**self.buffers, **later.buffers},
            target={**self.target, **later.target},
            modes=self.modes if later.modes is None else later.modes,
            optimizer=self.optimizer if later.optimizer is None else later.optimizer,
            rng=self.rng if later.rng is None else later.rng,
            partial=self.partial or later.partial,
        )

    def n_bytes(self) -> int:
        """Memory of its tensors, in bytes."""
        return batches.n_bytes([self.weights, self.buffers, self.target, self.optimizer or {}])

    # ------------------------------------------------------------------ re-enacted

    def apply(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Bring model and optimizer to where they were after the boundary, all but the generators."""
        import torch

        from whyspike.capsule import restore_optimizer

        with torch.no_grad():
            for own, values in (
                (dict(model.named_parameters()), {**self.weights, **self.target}),
                (dict(model.named_buffers()), self.buffers),
            ):
                for name, value in values.items():
                    if name in own:
                        own[name].copy_(own[value] if isinstance(value, str) else value)
            if self.optimizer is not None:
                restore_optimizer(self.optimizer, optimizer)
        if self.modes is not None:
            training = set(self.modes)
            for name, module in model.named_modules():
                module.training = name in training

    def apply_rng(self) -> None:
        """Put the generators to where they were after the boundary. To be called once the batch is there."""
        if self.rng is not None:
            from whyspike.rngnotes import restore

            restore(dict(self.rng))

    # ------------------------------------------------------------------ stored

    def encode(self, prefix: str) -> tuple[Any, dict[str, Any]]:
        """As JSON, and its tensors by name."""
        from whyspike.capsule_file import pack_rng

        document = {
            "weights": self.weights,
            "buffers": self.buffers,
            "target": self.target,
            "modes": None if self.modes is None else list(self.modes),
            "optimizer": self.optimizer,
            "rng": pack_rng(self.rng),
            "partial": self.partial,
        }
        return batches.flatten(document, prefix, where="a boundary between steps")

    @classmethod
    def decode(cls, tree: Any, tensors: Mapping[str, Any]) -> Boundary:
        """The inverse of `encode`."""
        from whyspike.capsule_file import unpack_rng

        document = batches.unflatten(tree, tensors)
        modes = document["modes"]
        return cls(**{**document, "modes": None if modes is None else tuple(modes), "rng": unpack_rng(document["rng"])})
