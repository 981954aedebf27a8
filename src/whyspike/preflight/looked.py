"""What the probes look at: a training that has not trained, and its first batches. Nothing of it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from whyspike import batches
from whyspike.errors import BadTraining, WhySpikeError
from whyspike.frozen import call_loss, frozen
from whyspike.loader_ids import data_loader
from whyspike.training import Training

FEW = 3  # batches that the probes share; one epoch's, where it has fewer


@dataclass(frozen=True)
class First:
    """A batch as the loader would give it, and, where it has a dataset to index, the samples it was made of."""

    batch: Any
    items: Sequence[Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None


class Looked:
    """A training, its first batch, and whether its loss is to be had in train mode only.

    Raises:
        BadTraining: the loader is empty or a one-shot iterator, `loss_fn` raises or does not return a scalar that
            depends on the parameters.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.first = first_batch(training.loader)
        self.train_mode = _needs_train_mode(training, self.first.batch)

    @cached_property
    def few(self) -> list[Any]:
        """The first batches of an epoch; the very first one alone where no more can be had."""
        loader = self.training.loader
        inner = data_loader(loader)
        try:
            with generators_kept(inner):
                if inner is not None and inner is loader and indexable(inner):
                    drawn = islice(own_copy(inner), FEW)
                    return [inner.collate_fn(items(inner.dataset, rows)) for rows in drawn]
                return [batches.clone(b) for b in islice(loader, FEW)] if isinstance(loader, list | tuple) else []
        except Exception:  # what fails is said where the first batch is drawn
            return []

    @property
    def drawn(self) -> list[Any]:
        return self.few or [self.first.batch]


def first_batch(loader: Any) -> First:
    """The batch that the loader would give first.

    Raises:
        BadTraining: there is none, or drawing it raised.
    """
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
    with generators_kept(inner):
        try:
            # Without the loader's workers: starting them takes seconds, and persistent ones would stay.
            if inner is not None and inner is loader and indexable(inner):
                found = items(inner.dataset, next(own_copy(inner)))
                return First(inner.collate_fn(list(found)), found, inner.collate_fn)
            return First(next(iter(loader)))
        except StopIteration:
            raise BadTraining(
                f"the loader ({type(loader).__name__}) yields no batch; a training needs at least one: look at the "
                "length of the dataset, and at drop_last=True with fewer samples than a batch"
            ) from None
        except Exception as error:
            raise BadTraining(
                f"drawing a batch from the loader ({type(loader).__name__}) raised {type(error).__name__}: {error}"
            ) from error


def indexable(inner: DataLoader[Any]) -> bool:
    """Whether batches can be made of the loader's dataset without the loader."""
    return inner.batch_sampler is not None and not isinstance(inner.dataset, IterableDataset)


def own_copy(inner: DataLoader[Any]) -> Iterator[Any]:
    """The batches of indices of one epoch, from a copy of the loader's batch sampler: one may count its epochs."""
    return iter(copy_of_sampler(inner))


def copy_of_sampler(inner: DataLoader[Any]) -> Any:
    """A copy of the batch sampler, over the same dataset; the sampler itself where it cannot be copied."""
    memo: dict[int, Any] = {id(inner.dataset): inner.dataset}
    for generator in _generators(inner):
        made = torch.Generator(device=generator.device)
        made.set_state(generator.get_state())
        memo[id(generator)] = made
    try:
        return copy.deepcopy(inner.batch_sampler, memo)
    except Exception:  # a sampler may hold anything
        return inner.batch_sampler


def items(dataset: Any, rows: Sequence[Any]) -> list[Any]:
    """Samples, read as torch's own fetcher does."""
    several = getattr(dataset, "__getitems__", None)
    return list(several(rows)) if several else [dataset[i] for i in rows]


def _generators(loader: DataLoader[Any] | None) -> list[torch.Generator]:
    samplers = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[-1], "sampler", None))
    dataset = getattr(loader, "dataset", None)
    owned = [getattr(s, "generator", None) for s in samplers] + list(getattr(dataset, "__dict__", {}).values())
    return list({id(g): g for g in owned if isinstance(g, torch.Generator)}.values())


@contextmanager
def generators_kept(loader: DataLoader[Any] | None) -> Iterator[None]:
    """The global generators, and those that the loader, its samplers and its dataset own, are put back."""
    states = [(g, g.get_state()) for g in _generators(loader)]
    with frozen(nn.Identity()):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def size_of(batch: Any) -> int | None:
    """Samples of a batch; None where they cannot be counted."""
    try:
        return batches.size(batch)
    except WhySpikeError:
        return None


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
