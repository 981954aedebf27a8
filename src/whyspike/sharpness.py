"""Sharpness: the largest curvature of the loss in the metric of the optimizer, against what the optimizer can stand.

An optimizer that divides the gradient by P and steps by lr is a gradient descent on P^-1 H. It oscillates with growing
amplitude along a direction whose curvature is above a limit, in units of 1 / lr:

- gradient descent: 2
- heavy ball, decay mu and dampening d (torch.optim.SGD): 2 (1 + mu) / (1 - d), 3.8 at mu = .9
- Nesterov as torch.optim.SGD writes it: 2 (1 + mu) / (1 + 2 mu), 1.357 at mu = .9
- a first moment that is a mean (Adam, AdamW): 2 (1 + beta1) / (1 - beta1), 38 at beta1 = .9, with
  P = diag(sqrt(v_hat) + eps)

The first and the last are those of Cohen et al. 2021 (arXiv 2103.00065) and 2022 (arXiv 2207.14484); all four are
checked by simulation in tests/test_sharpness.py. They hold for the full batch. With mini-batches, spikes occur far
below (.02 to .3 of the limit in experiment Q2), so that the number says nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import batches
from whyspike.errors import NotReplayable
from whyspike.frozen import call_loss, frozen
from whyspike.seams import LossFn

ITERATIONS = 100  # Hessian-vector products at most
TOLERANCE = 1e-3  # relative change of the curvature between two iterations at which to stop


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """The largest curvature in the optimizer's metric.

    `ratio` is the curvature over the limit: above 1 the full-batch training is unstable. `direction` is the unit
    eigenvector in the metric's own coordinates, one tensor for each parameter.
    """

    curvature: float  # of lr P^-1 H, so that the limit has no lr in it
    limit: float
    direction: tuple[torch.Tensor, ...]
    iterations: int
    converged: bool

    @property
    def ratio(self) -> float:
        return self.curvature / self.limit


def stability_limit(optimizer: Optimizer) -> float | None:
    """The largest stable curvature, times lr. None for an optimizer whose limit is not known."""
    group = optimizer.param_groups[0]
    kind = type(optimizer).__name__
    if kind == "SGD":
        mu, dampening = float(group["momentum"]), float(group["dampening"])
        if group["nesterov"]:
            return 2 * (1 + mu) / (1 + 2 * mu)
        return 2 * (1 + mu) / (1 - dampening) if mu else 2.0
    if kind in ("Adam", "AdamW") and "betas" in group:
        beta1 = float(group["betas"][0])
        return 2 * (1 + beta1) / (1 - beta1)
    return None


def preconditioner(optimizer: Optimizer) -> list[torch.Tensor | float]:
    """What the next step multiplies the (averaged) gradient of every parameter by: lr / P.

    Adam's second moment is bias-corrected, as in its update. Parameters without a state yet have P = 1.
    """
    found: list[torch.Tensor | float] = []
    for group in optimizer.param_groups:
        lr = float(group["lr"])
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            v = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
            if v is None:
                found.append(lr)
                continue
            t = float(state["step"])
            corrected = 1 - float(group["betas"][1]) ** t if t else 1.0
            found.append(lr / ((v / corrected).sqrt() + group["eps"]))
    return found


def of_loss(
    loss: torch.Tensor,
    optimizer: Optimizer,
    *,
    start: Sequence[torch.Tensor] | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Sharpness:
    """The sharpness of a loss that has been computed, by power iteration on its graph.

    The graph is kept. One iteration costs about two backward passes and no memory beyond two vectors of the network's
    size. Where the curvature of the largest size is negative, the operator is shifted by it, so that the largest
    positive one is found.

    Args:
        start: a direction to begin with, as `Sharpness.direction`: a few iterations then follow a moving eigenvector.

    Raises:
        NotReplayable: the optimizer's limit is not known, or the network cannot be differentiated twice.
    """
    limit = stability_limit(optimizer)
    if limit is None:
        raise NotReplayable(
            f"the stability limit of {type(optimizer).__name__} is not known; those of SGD, Adam and AdamW are"
        )
    pairs = [
        (p, d)
        for p, d in zip(_parameters(optimizer), preconditioner(optimizer), strict=True)
        if p.requires_grad and p.dtype.is_floating_point
    ]
    parameters = [p for p, _ in pairs]
    roots = [d**0.5 for _, d in pairs]
    try:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise NotReplayable(f"the loss cannot be differentiated: {error}") from error
    # A parameter that is not used has no curvature; one that the loss is linear in has no graph to its gradient.
    curved = [(g, k) for k, g in enumerate(gradients) if g is not None and g.requires_grad]

    def product(w: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not curved:
            return [torch.zeros_like(p) for p in parameters]
        try:
            out = torch.autograd.grad(
                [g for g, _ in curved],
                parameters,
                [(roots[k] * w[k]) for _, k in curved],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise NotReplayable(f"the network cannot be differentiated twice: {error}") from error
        return [torch.zeros_like(p) if h is None else r * h for p, h, r in zip(parameters, out, roots, strict=True)]

    draw = torch.Generator().manual_seed(seed)
    if start is None:
        start = [torch.randn(p.shape, generator=draw).to(p) for p in parameters]
    with torch.no_grad():
        w = _unit([s.clone() for s in start])
        shift, before, done, converged, curvature = 0.0, float("nan"), 0, False, 0.0
        while done < iterations and not converged:
            with torch.enable_grad():
                h = product(w)
            done += 1
            curvature = _dot(w, h)
            size = _norm(h)
            if size == 0.0:
                return Sharpness(curvature=0.0, limit=limit, direction=tuple(w), iterations=done, converged=True)
            if not size < float("inf"):
                raise NotReplayable("the curvature is not finite here")
            converged = done > 2 and abs(curvature - before) <= tolerance * abs(curvature)
            if converged and curvature < 0 and shift == 0.0:
                shift, converged = -curvature, False
                w = _unit([torch.randn(p.shape, generator=draw).to(p) for p in parameters])
                before = float("nan")
                continue
            before = curvature
            if not converged:
                w = _unit([a + shift * b for a, b in zip(h, w, strict=True)])
    return Sharpness(curvature=curvature, limit=limit, direction=tuple(w), iterations=done, converged=converged)


def measure(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFn,
    batch: Any,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    start: Sequence[torch.Tensor] | None = None,
) -> Sharpness:
    """The sharpness at the present weights, on one batch, with the modules in the modes they are in.

    Nothing of the training changes: the gradients that lie in `p.grad` are not touched.

    Raises:
        NotReplayable: as `of_loss`.
        BadTraining: `loss_fn` raised or did not return a scalar.
    """
    with frozen(model, train_mode=None, seed=0), torch.enable_grad(), _twice_differentiable():
        loss = call_loss(model, loss_fn, batches.clone(batch))
        return of_loss(loss, optimizer, start=start, iterations=iterations, tolerance=tolerance)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Fused attention and cuDNN's recurrent layers have no second derivative; their plain forms have."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _dot(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def _norm(a: Sequence[torch.Tensor]) -> float:
    return _dot(a, a) ** 0.5


def _unit(a: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    size = _norm(a) or 1.0
    return [x / size for x in a]
