"""Every intervention against the same step written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from whyspike.interventions import (
    ClipGradNorm,
    FillBatch,
    ReplaceSamples,
    RescaleLoss,
    ScaleLr,
    SkipBatch,
    SubtractMomentum,
    ZeroMomentum,
)
from whyspike.seams import BASELINE, Intervention, StepContext, StepRule, training_step

Batch = tuple[torch.Tensor, torch.Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def data(n: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g), torch.randn(n, 1, generator=g)


def at(**changes: Any) -> StepContext:
    values = {"step": 0, "epoch": 0, "index": 0, "n_samples": 8, "batch_size": 8, "is_event": True, **changes}
    return StepContext(**values)


def trained(
    intervention: Intervention, batches: list[Batch], contexts: list[StepContext], optimizer: str = "sgd"
) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    made = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=0.1)
    )
    intervention.begin(model, made)
    for batch, context in zip(batches, contexts, strict=True):
        training_step(model, made, loss_fn, [batch], context, intervention)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(gradient_scale: list[float], batches: list[Batch], momentum_after: list[str] | None = None) -> torch.Tensor:
    """SGD with momentum .9 and lr .1, written out."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    buffers: list[torch.Tensor | None] = [None, None]
    for k, (scale, batch) in enumerate(zip(gradient_scale, batches, strict=True)):
        if scale == 0:
            continue
        gradients = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(model.parameters(), gradients, strict=True)):
                old = buffers[i]
                new = g * scale if old is None else old * 0.9 + g * scale
                p -= 0.1 * new
                what = (momentum_after or ["keep"] * len(batches))[k]
                buffers[i] = {
                    "keep": new,
                    "zero": torch.zeros_like(new),
                    "without": torch.zeros_like(new) if old is None else old * 0.9,
                }[what]
    return torch.cat([p.detach().flatten() for p in model.parameters()])


THREE = [data(8, s) for s in range(3)]
EVENT_IN_THE_MIDDLE = [at(step=0, is_event=False), at(step=1), at(step=2, is_event=False)]


def test_baseline_changes_nothing() -> None:
    torch.testing.assert_close(trained(BASELINE, THREE, EVENT_IN_THE_MIDDLE), by_hand([1, 1, 1], THREE))


def test_rescale_loss_scales_the_gradient_of_that_step_only() -> None:
    got = trained(RescaleLoss(lambda at: 0.25, "a quarter"), THREE, EVENT_IN_THE_MIDDLE)
    torch.testing.assert_close(got, by_hand([1, 0.25, 1], THREE))


def test_skip_batch_makes_no_update() -> None:
    torch.testing.assert_close(trained(SkipBatch(), THREE, EVENT_IN_THE_MIDDLE), by_hand([1, 0, 1], THREE))


def test_zero_momentum_keeps_the_step_itself() -> None:
    got = trained(ZeroMomentum(), THREE, EVENT_IN_THE_MIDDLE)
    torch.testing.assert_close(got, by_hand([1, 1, 1], THREE, ["keep", "zero", "keep"]))


def test_subtract_momentum_keeps_the_memory_of_earlier_steps() -> None:
    got = trained(SubtractMomentum(), THREE, EVENT_IN_THE_MIDDLE)
    torch.testing.assert_close(got, by_hand([1, 1, 1], THREE, ["keep", "without", "keep"]))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_clip_bounds_the_norm(per_tensor: bool) -> None:
    model = nn.Linear(3, 1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    ClipGradNorm(0.5, per_tensor=per_tensor).gradients(at(), model)
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    if per_tensor:
        assert norms == pytest.approx([0.5, 0.5], rel=1e-4)
    else:
        assert sum(n**2 for n in norms) ** 0.5 == pytest.approx(0.5, rel=1e-4)


def test_scale_lr_puts_the_learning_rate_back() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training_step(model, optimizer, loss_fn, [data(8)], at(), ScaleLr(0.1))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_fill_batch_keeps_the_samples_and_tops_up() -> None:
    small = data(2)
    filled = FillBatch(lambda n: data(n, 9)).batch(at(n_samples=2), small)
    assert len(filled[0]) == 8
    assert torch.equal(filled[0][:2], small[0])
    assert torch.equal(filled[0][2:], data(6, 9)[0])


def test_replace_samples_keeps_the_size() -> None:
    replaced = ReplaceSamples(lambda n: data(n, 9)).batch(at(n_samples=2), data(2))
    assert torch.equal(replaced[0], data(2, 9)[0])


def test_interventions_act_where_they_are_told_to() -> None:
    skip = SkipBatch(where="control")
    assert skip.batch(at(is_event=True, is_control=False), data(2)) is not None
    assert skip.batch(at(is_event=False, is_control=True), data(2)) is None
    assert SkipBatch(where="partial").batch(at(n_samples=2), data(2)) is None
    assert SkipBatch(where="partial").batch(at(n_samples=8), data(8)) is not None


def test_accumulated_micro_batches_give_the_gradient_of_their_mean() -> None:
    one, two = data(8, 1), data(8, 2)
    results = []
    for batches, rule in (
        ([one, two], StepRule(accumulate=2)),
        ([(torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]))], StepRule()),
    ):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        result = training_step(model, optimizer, loss_fn, batches, at(), rule=rule)
        results.append((result.loss, model.weight.detach().clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])
