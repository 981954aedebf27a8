"""The first loss, beside that of a network that treats all classes alike."""

from __future__ import annotations

from typing import Any

from whyspike.errors import WhySpikeError
from whyspike.firstloss import first_loss
from whyspike.preflight.looked import Looked
from whyspike.preflight.probe import Probe


class FirstLoss(Probe):
    """The first loss, beside that of a network that treats all classes alike."""

    words = "holding the first loss against equal logits"

    def measure(self, looked: Looked) -> dict[str, Any]:
        try:
            return {"first_loss": first_loss(looked.training.model, looked.training.loss_fn, looked.drawn)}
        except WhySpikeError:  # in train mode, a last batch of one sample may raise
            return {"first_loss": None}
