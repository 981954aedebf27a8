"""Save, load, and take one more step: it must be bitwise the step that would have come."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.cause import Setup
from whyspike.frozen import frozen, restore_rng, rng_state, seed_rng
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe
from whyspike.types import Finding

LARGEST = 20_000_000  # parameters: three copies of network and optimizer are made


def _step(looked: Looked, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    seed_rng(seed)
    optimizer.zero_grad(set_to_none=True)
    loss = looked.training.loss_fn(model, batches.clone(looked.drawn[seed % len(looked.drawn)]))
    loss.backward()
    if looked.training.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), looked.training.clip_grad_norm)
    optimizer.step()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class SaveAndLoad(Probe):
    """Save, load, and take one more step: it must be bitwise the step that would have come."""

    words = "saving, loading, and taking a step"

    def measure(self, looked: Looked) -> dict[str, Any]:
        training = looked.training
        if sum(p.numel() for p in training.model.parameters()) > LARGEST:
            return {}
        generators = rng_state()
        try:
            with frozen(training.model), torch.enable_grad():
                first = copy.deepcopy((training.model, training.optimizer))
                second = copy.deepcopy((training.model, training.optimizer))
                for made in (first, second):
                    made[0].train()
                for seed in (0, 1):
                    _step(looked, *first, seed)
                weights, state = copy.deepcopy((first[0].state_dict(), first[1].state_dict()))
                second[0].load_state_dict(weights)
                second[1].load_state_dict(state)
                apart = [n for n, p in second[0].named_parameters() if not _same(p, first[0].get_parameter(n))]
                _step(looked, *first, 2)
                _step(looked, *second, 2)
            if not apart:
                apart = [n for n, p in second[0].named_parameters() if not _same(p, first[0].get_parameter(n))]
            return {"resumed": tuple(apart)}
        except Exception:  # a network that cannot be copied, or is not made for one more step by hand
            return {}
        finally:
            restore_rng(generators)

    def say(self, setup: Setup) -> Finding | None:
        if not setup.resumed:
            return None
        named = ", ".join(setup.resumed[:3]) + (f" and {len(setup.resumed) - 3} more" if len(setup.resumed) > 3 else "")
        return Finding(
            cause="resume-without-state",
            text="a step after saving and loading is not the one that would have come: state_dict() lacks a part",
            observed=f"other weights in {named}",
            expected="bitwise the same weights",
            cure="keep what a step uses in parameters or persistent buffers, and in the optimizer's state",
        )
