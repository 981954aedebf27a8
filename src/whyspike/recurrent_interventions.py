"""Changes inside recurrent layers: the gradient through time cut, everything computed forward left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike.interventions import Where, acts
from whyspike.seams import Intervention, StepContext


def recurrent_layers(model: nn.Module) -> list[nn.RNNBase]:
    """Torch's own recurrent layers (RNN, GRU, LSTM) in a model."""
    return [m for m in model.modules() if isinstance(m, nn.RNNBase)]


class TruncateGradient(Intervention):
    """Backpropagation through time cut every `steps` steps. States, outputs and the loss stay what they were.

    Only layers of one direction that are given a padded batch can be cut; others stay as they are.
    """

    def __init__(self, steps: int, words: str | None = None, where: Where = "always") -> None:
        self.steps = steps
        self.where: Where = where
        self.words = words or f"the gradient through time cut every {steps} steps"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._layers = recurrent_layers(model)
        self._undo: list[Callable[[], None]] = []

    def batch(self, at: StepContext, batch: Any) -> Any:
        if acts(self.where, at):
            for layer in self._layers if not self._undo else ():
                layer.forward = _cut(layer, self.steps)  # type: ignore[method-assign]
                self._undo.append(lambda layer=layer: layer.__dict__.pop("forward", None))
        return batch

    def loss(self, at: StepContext, loss: torch.Tensor) -> torch.Tensor:
        while self._undo:
            self._undo.pop()()
        return loss


def _cut(layer: nn.RNNBase, steps: int) -> Callable[..., Any]:
    whole = type(layer).forward

    def forward(x: Any, state: Any = None) -> Any:
        if not isinstance(x, torch.Tensor) or x.dim() != 3 or layer.bidirectional:
            return whole(layer, x, state)
        time = 1 if layer.batch_first else 0
        outputs = []
        for piece in x.split(steps, dim=time):
            output, state = whole(layer, piece, state)
            outputs.append(output)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return torch.cat(outputs, dim=time), state

    return forward
