"""All the changes that a spike can be replayed with, for `prove --full`: what each removes, one beside the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whyspike.interventions import ClipGradNorm, ScaleLr, SkipBatch, momentum_buffers
from whyspike.optimizer_interventions import ClipUpdate, ResetMomentum, SetHyperparameters, median_root_v
from whyspike.sample_interventions import LeaveOut, OtherBatches

if TYPE_CHECKING:
    from whyspike.cause import Observation
    from whyspike.replay import Subject
    from whyspike.seams import Intervention

SHARE = 0.01  # of the samples that are left out


def every_change(seen: Observation, subject: Subject) -> list[Intervention]:
    """The changes of experiment Q2, from the most specific to the ceiling."""
    optimizer = subject.optimizer
    arms: list[Intervention] = [
        SkipBatch("the batch of the event skipped"),
        OtherBatches(subject.draw, 0),
        LeaveOut(SHARE, subject.loss_fn),
        LeaveOut(SHARE, None),
    ]
    norm = seen.median_gradient_norm()
    if norm is not None:
        arms += [
            ClipGradNorm(3 * norm, "gradient clipped to 3 x its median norm", "always"),
            ClipGradNorm(norm, "gradient clipped to its median norm", "always"),
        ]
    if momentum_buffers(optimizer) or "betas" in optimizer.param_groups[0]:
        arms += [ResetMomentum(warm=False), ResetMomentum(warm=True)]
    group = optimizer.param_groups[0]
    if "betas" in group:
        beta1 = group["betas"][0]
        arms += [
            ClipUpdate(),
            SetHyperparameters({"betas": (beta1, 0.99)}, "beta2 = 0.99"),
            SetHyperparameters({"betas": (beta1, 0.9)}, "beta2 = 0.9"),
        ]
        size = median_root_v(optimizer)
        if size:
            arms.append(SetHyperparameters({"eps": size}, f"eps = {size:.2g}, the median of sqrt(v)"))
    return [
        *arms,
        ScaleLr(1 / 3, "learning rate / 3", "always"),
        ScaleLr(0.1, "learning rate / 10 (the ceiling)", "always"),
    ]
