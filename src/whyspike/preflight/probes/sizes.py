"""How many samples an epoch, a step and an epoch's last step have, and the facts of loader, optimizer and model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from whyspike.batchnorm import layers
from whyspike.cause import Setup
from whyspike.loader_ids import data_loader, length, loader_facts
from whyspike.preflight.looked import First, Looked, size_of
from whyspike.preflight.probe import Probe
from whyspike.training import Training
from whyspike.types import Note


def sizes(training: Training, first: First, drop_last: bool) -> tuple[int | None, int | None, int | None]:
    """(samples of an epoch, samples of a step, samples of an epoch's last step); None where it cannot be known."""
    loader, accumulate = training.loader, training.accumulate
    if isinstance(loader, list | tuple):
        sizes = [n for n in map(size_of, loader) if n is not None]
        if len(sizes) < len(loader):
            return None, None, None
        steps = [sum(sizes[i : i + accumulate]) for i in range(0, len(sizes), accumulate)]
        return sum(sizes), Counter(steps).most_common(1)[0][0], steps[-1]
    facts = loader_facts(loader)
    said = facts.get("batch_size")
    size = said if isinstance(said, int) else size_of(first.batch)
    inner = data_loader(loader)
    if size is None or inner is None or not isinstance(said, int):
        return None, None if size is None else size * accumulate, None
    # A sampler may yield fewer or more than the dataset holds (WeightedRandomSampler, DistributedSampler).
    n = length(inner.dataset if inner.sampler is None else inner.sampler)
    if n is None:
        return None, size * accumulate, None
    if drop_last:
        n -= n % size
    full = size * accumulate
    return n, full, n % full or full


def _optimizer_facts(training: Training) -> dict[str, object]:
    optimizer = training.optimizer
    facts: dict[str, object] = {"optimizer": type(optimizer).__name__, "clip_grad_norm": training.clip_grad_norm}
    if optimizer.param_groups:
        group = optimizer.param_groups[0]
        for name in ("lr", "momentum", "betas", "eps", "weight_decay"):
            if isinstance(group.get(name), int | float | tuple):
                facts[name] = group[name]
    if training.scheduler is not None:
        facts["scheduler"] = type(training.scheduler).__name__
    return facts


def _model_facts(model: nn.Module) -> dict[str, object]:
    modules = list(model.modules())
    facts: dict[str, object] = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_norm": any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules),
        "dropout": any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules),
    }
    momenta = {m.momentum for m in layers(model)}
    if len(momenta) == 1:  # None is a plain mean over all batches
        facts["batch_norm_momentum"] = momenta.pop()
    return facts


class Sizes(Probe):
    """How many samples an epoch, a step and an epoch's last step have, and the facts of loader, optimizer and model."""

    words = "counting samples"

    def measure(self, looked: Looked) -> dict[str, Any]:
        training = looked.training
        facts = loader_facts(training.loader)
        drop_last = facts.get("drop_last")
        n, size, last = sizes(training, looked.first, bool(drop_last))
        return {
            "dataset_size": n,
            "batch_size": size,
            "last_batch": last,
            "shuffle": facts.get("shuffle"),
            "drop_last": drop_last if isinstance(drop_last, bool) else None,
            "accumulate": training.accumulate,
            "facts": facts | _optimizer_facts(training) | _model_facts(training.model),
        }

    def say(self, setup: Setup) -> Note | None:
        if setup.last_batch is not None or "loader" not in setup.facts:
            return None
        return Note(
            id="last-batch-unknown",
            text=f"a loader of type {setup.facts['loader']} was given, which does not say how many samples an "
            "epoch has, so the size of its last batch is not known; give a torch DataLoader "
            "over a dataset with a length",
        )
