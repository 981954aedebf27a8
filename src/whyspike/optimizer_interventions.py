"""Changes of what the optimizer makes of the gradients, throughout a replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike.interventions import Where, acts, momentum_buffers
from whyspike.seams import Intervention, StepContext


class SetHyperparameters(Intervention):
    """Other hyperparameters in every parameter group that has them; state that is there stays."""

    def __init__(self, values: Mapping[str, Any], words: str) -> None:
        self.values, self.words = values, words

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        self._kept = []
        for group in optimizer.param_groups:
            changed = {k: v for k, v in self.values.items() if k in group}
            self._kept.append((group, {k: group[k] for k in changed}))
            group.update(changed)

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        for group, values in self._kept:
            group.update(values)


class HoldLr(Intervention):
    """The learning rate never above that of the step before: held where it was before the steps on which this acts."""

    def __init__(self, words: str, where: Where = "onward") -> None:
        self.words = words
        self.where: Where = where

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._before: list[float] | None = None

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        self._kept = [g["lr"] for g in optimizer.param_groups]
        if acts(self.where, at) and self._before is not None:
            for group, held in zip(optimizer.param_groups, self._before, strict=True):
                group["lr"] = min(float(group["lr"]), held)
        self._before = [float(g["lr"]) for g in optimizer.param_groups]

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        for group, lr in zip(optimizer.param_groups, self._kept, strict=True):
            group["lr"] = lr


class WarmUp(Intervention):
    """The learning rate multiplied by (t + 1) / steps in the first steps of the training, t from 0."""

    def __init__(self, steps: int, words: str) -> None:
        self.steps, self.words = steps, words

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        self._kept = [g["lr"] for g in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * min(1.0, (at.step + 1) / self.steps)

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        for group, lr in zip(optimizer.param_groups, self._kept, strict=True):
            group["lr"] = lr


class _ChangedUpdate(Intervention):
    """Multiply the update of every tensor by a factor."""

    def factor(self, at: StepContext, number: int, parameter: torch.Tensor, optimizer: Optimizer) -> Any:
        """A number, or a tensor of the parameter's shape. Called before the update."""
        raise NotImplementedError

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self._kept = [(p, p.detach().clone(), self.factor(at, k, p, optimizer)) for k, p in enumerate(parameters)]

    def after_update(self, at: StepContext, optimizer: Optimizer) -> None:
        with torch.no_grad():
            for p, before, factor in self._kept:
                p.copy_(before + (p - before) * factor)


class ShakeLr(_ChangedUpdate):
    """Every weight's learning rate raised or lowered by the same share, at random; as many up as down.

    As large a change of every step as a lower learning rate, that leaves the mean step as it was.
    """

    def __init__(self, share: float, words: str | None = None, seed: int = 0) -> None:
        self.share, self.seed = share, seed
        self.words = words or f"every weight's learning rate {share:.0%} higher or lower at random"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._factors: dict[int, torch.Tensor] = {}
        self._rng = torch.Generator().manual_seed(self.seed)

    def factor(self, at: StepContext, number: int, parameter: torch.Tensor, optimizer: Optimizer) -> Any:
        if number not in self._factors:
            signs = torch.randint(2, parameter.shape, generator=self._rng) * 2 - 1
            self._factors[number] = (1 + self.share * signs).to(parameter)
        return self._factors[number]


class ClipUpdate(_ChangedUpdate):
    """Divide the update of a tensor by its RMS_t = sqrt(mean(g^2 / v_hat)) where that is above 1, as StableAdamW does.

    Wortsman et al. 2023, arXiv 2304.13013.
    """

    words = "updates clipped as in StableAdamW"

    def factor(self, at: StepContext, number: int, parameter: torch.Tensor, optimizer: Optimizer) -> Any:
        state, group = optimizer.state.get(parameter, {}), _group(optimizer, parameter)
        v = state.get("exp_avg_sq")
        if v is None or parameter.grad is None:
            return 1.0
        beta2 = float(group["betas"][1])
        t = float(state["step"]) + 1
        ahead = (beta2 * v + (1 - beta2) * parameter.grad**2) / (1 - beta2**t)
        rms = float((parameter.grad**2 / ahead.clamp(min=float(group["eps"]) ** 2)).mean().sqrt())
        return 1 / max(1.0, rms) if math.isfinite(rms) else 1.0


class ResetMomentum(_ChangedUpdate):
    """The first moment set to zero where the replay begins.

    Until it has filled again, updates are smaller: that is a lower learning rate in disguise. With `warm`, they are
    divided by 1 - beta1^k at the k-th step after it, as at the beginning of a training: the control.
    """

    def __init__(self, *, warm: bool) -> None:
        self.warm = warm
        self.words = f"momentum set to zero {'and its bias corrected anew' if warm else 'at the beginning'}"

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._steps = 0
        for _, buffer, _, _ in momentum_buffers(optimizer):
            buffer.zero_()

    def before_update(self, at: StepContext, optimizer: Optimizer) -> None:
        self._steps += 1
        self._decays = {id(p): decay for p, _, decay, _ in momentum_buffers(optimizer)}
        super().before_update(at, optimizer)

    def factor(self, at: StepContext, number: int, parameter: torch.Tensor, optimizer: Optimizer) -> Any:
        decay = self._decays.get(id(parameter), 0.0)
        if not self.warm or not decay:
            return 1.0
        # A moment that is a mean is 1 - decay^k of the gradient after k steps; SGD's, a sum, tends to 1 / (1 - decay).
        return 1 / (1 - decay**self._steps)


def _group(optimizer: Optimizer, parameter: torch.Tensor) -> Mapping[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def median_root_v(optimizer: Optimizer) -> float | None:
    """The median of sqrt(v) over all weights: what an eps must come near to matter. None without a second moment."""
    roots = [s["exp_avg_sq"].sqrt().flatten() for s in optimizer.state.values() if "exp_avg_sq" in s]
    return float(torch.cat(roots).median()) if roots else None
