"""The same samples in batches of 1, 2, 4 and B, where the network has BatchNorm."""

from __future__ import annotations

from typing import Any

from torch import nn

from whyspike import batches
from whyspike.batchnorm import SAMPLES, by_size
from whyspike.errors import WhySpikeError
from whyspike.preflight.looked import Looked, size_of
from whyspike.preflight.probe import Probe


class BatchNorm(Probe):
    """The same samples in batches of 1, 2, 4 and B, where the network has BatchNorm."""

    words = "normalising by 1, 2, 4 and all samples of a batch"

    def measure(self, looked: Looked) -> dict[str, Any]:
        model, batch = looked.training.model, looked.first.batch
        n = size_of(batch)
        if n is None or n < 2 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            return {}
        try:
            if n > SAMPLES:
                batch = batches.take(batch, list(range(SAMPLES)), n)
            sizes = sorted({k for k in (1, 2, 4) if k <= n} | {min(n, SAMPLES)})
            return {"by_size": by_size(model, looked.training.loss_fn, batch, sizes)}
        except WhySpikeError:
            return {}
