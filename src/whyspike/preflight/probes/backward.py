"""Two backward passes of the same batch: their gradients must be alike, and none may be there beforehand."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from whyspike import batches
from whyspike.cause import Setup
from whyspike.frozen import frozen
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.types import Finding

TWICE = (1.9, 2.1)  # of the first gradient: it was added up
LARGEST = 100_000_000  # parameters; a copy of a larger network takes too long


def _second_pass_fails(looked: Looked) -> tuple[str, float] | None:
    """Whether the loss of a second call reaches into the graph of the first one, which a backward pass has freed."""
    training = looked.training
    try:
        with frozen(training.model, train_mode=looked.train_mode, seed=0), torch.enable_grad():
            parameters = [p for p in training.model.parameters() if p.requires_grad]
            for _ in range(2):
                loss = training.loss_fn(training.model, batches.clone(looked.first.batch))
                torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        return ("freed", math.nan) if "second time" in str(error) else None
    except Exception:
        return None
    return None


def _norm(model: torch.nn.Module) -> float:
    found = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(found).norm()) if found else 0.0


class Backward(Probe):
    """Two backward passes of the same batch: their gradients must be alike, and none may be there beforehand."""

    words = "running two backward passes"

    def measure(self, looked: Looked) -> dict[str, Any]:
        """On a copy of the network: the second gradient over the first, or over it what the loss itself left there."""
        training = looked.training
        if sum(p.numel() for p in training.model.parameters()) > LARGEST:
            return {}
        try:
            with frozen(training.model, seed=0), torch.enable_grad():
                model = copy.deepcopy(training.model)
                model.train(looked.train_mode)
                norms, left = [], 0.0
                for _ in range(2):
                    for p in model.parameters():
                        p.grad = None
                    with frozen(model, train_mode=looked.train_mode, seed=0), torch.enable_grad():
                        loss = training.loss_fn(model, batches.clone(looked.first.batch))
                        left = _norm(model)
                        loss.backward()
                        norms.append(_norm(model))
        except Exception:  # a network that cannot be copied, or a second pass through a graph that is gone
            return {"backward": _second_pass_fails(looked)}
        if not all(math.isfinite(v) and v > 0 for v in norms):
            return {}
        return {"backward": ("left", left / norms[1]) if left > 0 else ("ratio", norms[1] / norms[0])}

    def say(self, setup: Setup) -> Finding | None:
        if setup.backward is None:
            return None
        kind, value = setup.backward
        if kind == "left":
            return Finding(
                cause="grads-not-zeroed",
                text="loss_fn calls backward() itself, so that every gradient is added up twice",
                observed=f"after loss_fn alone there is a gradient of {value:.2g} times that of the step",
                expected="none before backward()",
                cure="return the loss from loss_fn, and let the training loop call backward()",
            )
        if kind == "freed" or TWICE[0] <= value <= TWICE[1]:
            return Finding(
                cause="grads-not-zeroed",
                text="the loss of a batch still holds that of the batch before",
                observed="its backward pass runs into the graph of the one before"
                if kind == "freed"
                else f"the second pass over one batch gives {value:.2f} times the gradient of the first",
                expected="the same gradient twice",
                cure="sum losses for a log with total += loss.item() or loss.detach()",
            )
        return None
