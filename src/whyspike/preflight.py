"""`whyspike check`: what can be said about a training before it trains.

One batch is drawn and the loss is measured on the frozen network; nothing is trained, and model, random generators
and the loader's own generators are left as they were. (A generator that the dataset itself owns moves on.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from whyspike import batches, exponent
from whyspike.cause import Setup, catalogue
from whyspike.checksum import checksums
from whyspike.errors import BadTraining, WhySpikeError
from whyspike.frozen import call_loss, frozen, loss_value
from whyspike.loader_ids import data_loader, length, loader_facts
from whyspike.training import Training, build
from whyspike.types import Exponent, Finding, Note, Preflight

Progress = Callable[[str, float], None]


def check(source: Training | Callable[..., Training], *, progress: Progress | None = None) -> Preflight:
    """Look at a training without training it.

    Args:
        source: a `whyspike.Training`, or a function that builds one.
        progress: called with words and the fraction that is done.

    Returns:
        Findings (wrong) and notes (ordinary, but they invite a cause; or what could not be looked at).

    Raises:
        BadTraining: the training cannot be used: the loader is empty or a one-shot iterator, `loss_fn` raises or does
            not return a scalar that depends on the parameters.
    """
    say = progress or (lambda words, done: None)
    say("building the training", 0.0)
    training = build(source)
    say("drawing a batch and measuring the loss on it", 0.3)
    setup = measure_setup(training)
    notes = _notes(setup)
    findings: list[Finding] = []
    causes = catalogue()
    for rank, (name, cause) in enumerate(causes.items()):
        say(f"asking {name}", 0.8 + 0.2 * rank / len(causes))
        said = cause.preflight(setup)
        if isinstance(said, Finding):
            findings.append(said)
        elif said is not None:
            notes.append(said)
    return Preflight(findings=tuple(findings), notes=tuple(notes))


def measure_setup(training: Training) -> Setup:
    """Measure what a preflight may look at. Counts are per optimizer step: all micro-batches together.

    Raises:
        BadTraining: as `check`.
    """
    first = _first_batch(training.loader)
    train_mode = _needs_train_mode(training, first.batch)
    found, reason = _exponent(training, first, train_mode)
    facts = loader_facts(training.loader)
    drop_last = facts.get("drop_last")
    n, size, last = _sizes(training, first, bool(drop_last))
    return Setup(
        dataset_size=n,
        batch_size=size,
        last_batch=last,
        shuffle=facts.get("shuffle"),  # type: ignore[arg-type]
        drop_last=drop_last if isinstance(drop_last, bool) else None,
        accumulate=training.accumulate,
        exponent=found,
        exponent_reason=reason,
        facts=facts | _optimizer_facts(training) | _model_facts(training.model),
        evaluation=_evaluation(training),
        split=_split(training, train_mode),
    )


def _needs_train_mode(training: Training, batch: Any) -> bool:
    """Whether the loss exists in train mode only (torchvision's detectors give boxes in eval mode).

    Raises:
        BadTraining: the loss cannot be had in train mode either.
    """

    def attempt(train_mode: bool) -> None:
        with frozen(training.model, train_mode=train_mode), torch.enable_grad():
            loss = call_loss(training.model, training.loss_fn, batches.clone(batch))
            if not loss.requires_grad:
                raise BadTraining(
                    "loss_fn(model, batch) returned a tensor that does not depend on the parameters of the model (its "
                    "requires_grad is False), so nothing can be trained with it; return the loss before .detach() or "
                    ".item(), and compute it with the model that is handed over"
                )

    try:
        attempt(False)
    except BadTraining:
        attempt(True)
        return True
    return False


def _exponent(training: Training, first: _First, train_mode: bool) -> tuple[Exponent | None, str | None]:
    model, loss_fn = training.model, training.loss_fn
    try:
        if first.items is not None and first.collate is not None:
            rows = range(len(first.items))
            return exponent.measure_from_dataset(
                model, loss_fn, first.items, first.collate, rows, train_mode=train_mode
            ), None
        return exponent.measure(model, loss_fn, first.batch, train_mode=train_mode), None
    except WhySpikeError as error:
        return None, str(error)


def _split(training: Training, train_mode: bool) -> tuple[float, float] | None:
    """The mean of a step's micro-losses, and the loss of all their samples at once; None where they cannot be had."""
    k, inner, model = training.accumulate, data_loader(training.loader), training.model
    if k < 2:
        return None
    try:
        with _generators_kept(inner):
            if inner is not None and inner.batch_sampler is not None:
                groups = [list(_items(inner.dataset, rows)) for rows in islice(inner.batch_sampler, k)]
                micro = [inner.collate_fn(items) for items in groups]
                whole = inner.collate_fn([item for items in groups for item in items])
            else:
                micro = list(islice(training.loader, k))
                whole = batches.concat(micro)
        with frozen(model, train_mode=train_mode, seed=0):
            losses = [loss_value(model, training.loss_fn, b) for b in micro]
            return (sum(losses) / len(losses), loss_value(model, training.loss_fn, whole)) if len(losses) > 1 else None
    except Exception:  # the loader and the loss are looked at elsewhere, and what fails is said there
        return None


def _evaluation(training: Training) -> tuple[str, ...] | None:
    """What one call of `evaluate(model)` changes; None where there is none, or where it fails by itself."""
    if training.evaluate is None:
        return None
    model = training.model
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    with frozen(model, train_mode=None), torch.enable_grad():
        flags = [m.training for m in model.modules()]
        sums = checksums(parameters), checksums(list(model.buffers()))
        try:
            training.evaluate(model)
        except Exception:
            return None
        finally:
            after = checksums(parameters), checksums(list(model.buffers()))
            changed = [m.training for m in model.modules()] != flags
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    if not torch.equal(parameter, value):
                        parameter.copy_(value)
    found = [part for part, old, new in zip(("weights", "buffers"), sums, after, strict=True) if old != new]
    return (*found, *(["modes"] if changed else []))


def _notes(setup: Setup) -> list[Note]:
    notes = []
    if setup.exponent is None:
        notes.append(
            Note(
                id="exponent-unknown",
                text=f"whether the loss depends on the batch size could not be measured: {setup.exponent_reason}",
            )
        )
    if setup.last_batch is None:
        notes.append(
            Note(
                id="last-batch-unknown",
                text=f"a loader of type {setup.facts['loader']} was given, which does not say how many samples an "
                "epoch has, so the size of its last batch is not known; give a torch DataLoader "
                "over a dataset with a length",
            )
        )
    return notes


# --------------------------------------------------------------------------- the first batch


@dataclass(frozen=True)
class _First:
    """A batch as the loader would give it, and, where it has a dataset to index, the samples it was made of."""

    batch: Any
    items: Sequence[Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None


def _first_batch(loader: Any) -> _First:
    if isinstance(loader, Iterator):
        raise BadTraining(
            f"the loader is a {type(loader).__name__}, which can be gone through only once; a training goes through it "
            "once per epoch: give the DataLoader itself, a list of batches, or an object with __iter__"
        )
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise BadTraining(
            f"the loader is of type {type(loader).__name__}, which cannot be iterated over; give a torch DataLoader or "
            "a list of batches"
        )
    inner = data_loader(loader)
    with _generators_kept(inner):
        try:
            # Without the loader's workers: starting them takes seconds, and persistent ones would stay.
            if (
                inner is not None
                and inner is loader
                and inner.batch_sampler is not None
                and not isinstance(inner.dataset, IterableDataset)
            ):
                items = _items(inner.dataset, next(iter(inner.batch_sampler)))
                return _First(inner.collate_fn(list(items)), items, inner.collate_fn)
            return _First(next(iter(loader)))
        except StopIteration:
            raise BadTraining(
                f"the loader ({type(loader).__name__}) yields no batch; a training needs at least one: look at the "
                "length of the dataset, and at drop_last=True with fewer samples than a batch"
            ) from None
        except Exception as error:
            raise BadTraining(
                f"drawing a batch from the loader ({type(loader).__name__}) raised {type(error).__name__}: {error}"
            ) from error


def _items(dataset: Any, rows: Sequence[Any]) -> list[Any]:
    # As torch's own fetcher does.
    several = getattr(dataset, "__getitems__", None)
    return list(several(rows)) if several else [dataset[i] for i in rows]


@contextmanager
def _generators_kept(loader: DataLoader[Any] | None) -> Iterator[None]:
    """The global generators, and those that the loader and its samplers own, are put back."""
    samplers = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[-1], "sampler", None))
    owned = {id(g): g for g in (getattr(s, "generator", None) for s in samplers) if isinstance(g, torch.Generator)}
    states = {key: g.get_state() for key, g in owned.items()}
    with frozen(nn.Identity()):
        try:
            yield
        finally:
            for key, generator in owned.items():
                generator.set_state(states[key])


# --------------------------------------------------------------------------- sizes and facts


def _sizes(training: Training, first: _First, drop_last: bool) -> tuple[int | None, int | None, int | None]:
    """(samples of an epoch, samples of a step, samples of an epoch's last step); None where it cannot be known."""
    loader, accumulate = training.loader, training.accumulate
    if isinstance(loader, list | tuple):
        sizes = [n for n in map(_size, loader) if n is not None]
        if len(sizes) < len(loader):
            return None, None, None
        steps = [sum(sizes[i : i + accumulate]) for i in range(0, len(sizes), accumulate)]
        return sum(sizes), Counter(steps).most_common(1)[0][0], steps[-1]
    facts = loader_facts(loader)
    said = facts.get("batch_size")
    size = said if isinstance(said, int) else _size(first.batch)
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


def _size(batch: Any) -> int | None:
    try:
        return batches.size(batch)
    except WhySpikeError:
        return None


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
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_norm": any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules),
        "dropout": any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules),
    }
