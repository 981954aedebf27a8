from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure, Setup
from whyspike.types import Cure, Finding, Note, Suspicion

L2_IN = ("Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")  # torch's weight_decay is an L2 term in these


class WeightDecayMisuse(Cause):
    """a weight decay that acts where it should not, or not as it is meant.

    What happens:
        In Adam, `weight_decay` is a term of the gradient and is divided by sqrt(v) like the rest of it, so that weights
        with large gradients hardly decay. Decayed embeddings shrink, and a layer norm behind them makes their gradients
        grow by as much; without any decay logits and norms may grow without end.

    How it looks:
        Norms of some tensors that fall or rise over thousands of steps, long before any spike.

    How we test it:
        Before training it is noted when weight decay is given to an optimizer that makes an L2 term of it.
        This cause is a preview, and gives no verdict. It acts over 1 / (lr wd) steps and more: a replay of some dozen
        steps, which begins with the shrunk weights, cannot take it back. A small training that spikes because of it has
        not been looked for yet.

    What to do:
        AdamW, with decay on matrices alone: not on biases, norms and embeddings.

    References:
        Loshchilov & Hutter 2019, arXiv 1711.05101. D'Angelo et al. 2023, arXiv 2310.04415. OLMo 2, arXiv 2501.00656 (no
        decay on embeddings).
    """

    family = "optimizer"
    status = "preview"
    aliases = ("weight-decay", "l2-in-adam", "AdamW")
    rank = 70
    title = "weight decay acts where it should not"

    def preflight(self, setup: Setup) -> Finding | Note | None:
        name, decay = setup.facts.get("optimizer"), setup.facts.get("weight_decay")
        if name not in L2_IN or not isinstance(decay, int | float) or not decay > 0:
            return None
        return Note(
            id=self.id,
            text=f"{name} makes an L2 term of weight_decay={decay:g}, which it then divides by the size of the gradients: "
            "weights with large gradients hardly decay; AdamW decays all alike",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        return None  # nothing that is recorded has been shown to tell it

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="decay the matrices alone, with AdamW",
                    code={
                        "torch": "decayed = [p for p in model.parameters() if p.ndim >= 2]\n"
                        "others = [p for p in model.parameters() if p.ndim < 2]\n"
                        "torch.optim.AdamW([{'params': decayed}, {'params': others, 'weight_decay': 0.0}], lr=lr)",
                        "keras": "optimizer = keras.optimizers.AdamW(lr, weight_decay=0.01)\n"
                        "optimizer.exclude_from_weight_decay(var_names=['bias', 'gamma', 'beta', 'embeddings'])",
                        "hf": "TrainingArguments(weight_decay=0.01)   # leaves biases and norms out by itself",
                    },
                    applicability="unsafe",
                )
            )
        ]
