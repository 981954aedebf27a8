"""The live probe: the loss on a few fixed training samples, which says where the network is, whatever the batch was."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import nn

from whyspike import batches
from whyspike.frozen import frozen, loss_value
from whyspike.seams import LossFn

SEED = 20_24  # a loss function that draws noise draws the same in every probe


class LiveProbe:
    """The mean loss on fixed batches, in eval mode, leaving no trace in the training.

    Args:
        loss_fn: `loss_fn(model, batch)`, the loss as logged.
        pieces: batches of training samples; they are copied.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, pieces: Sequence[Any]) -> None:
        # Eval mode would make torch.compile build the whole network once more; the plain module does.
        self._model: nn.Module = getattr(model, "_orig_mod", model)
        self._loss_fn = loss_fn
        self._pieces = [batches.clone(piece) for piece in pieces]

    def __call__(self) -> float:
        """Measure.

        Raises:
            BadTraining: the user's loss_fn raised, or returned something else than a scalar.
        """
        cached = torch.is_autocast_cache_enabled()
        # Inside an autocast region weights are cached, and those of a probe would carry no gradient.
        torch.set_autocast_cache_enabled(False)
        try:
            with frozen(self._model, seed=SEED) as model:
                return fmean(loss_value(model, self._loss_fn, piece) for piece in self._pieces)
        finally:
            torch.set_autocast_cache_enabled(cached)
