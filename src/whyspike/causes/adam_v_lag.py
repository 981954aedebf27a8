from __future__ import annotations

from collections.abc import Sequence

from whyspike.cause import Cause, Observation, ScratchCure
from whyspike.types import Cure, Suspicion


class AdamVLag(Cause):
    """a second moment of Adam that lags behind gradients which have grown at once.

    What happens:
        Adam divides by the root of a mean square over about 1 / (1 - beta2) steps. Where gradients grow at once, that mean
        is still the old one, and the first steps are too long.

    How it looks:
        RMS_t = sqrt(mean(g^2 / v)) of a tensor far above 1, one to eight steps before the loss rises.

    How we test it:
        With update clipping: each tensor's step is divided by its RMS_t where that is above 1; `whyspike prove --full`
        shows what that removes.
        This cause is a preview, and gives no verdict. We could not reproduce it: a change of domain drove RMS_t to 15
        without any spike (the loss rose by 3 % at most), and in seven configurations of a small network that do spike,
        update clipping removed 0 to 41 % of it. A large RMS_t is a signal, not a proof.

    What to do:
        A smaller beta2 (.95 or .99) or update clipping (StableAdamW). A smaller beta2 may cause more spikes than it
        removes: from scratch it did, six times as many.

    References:
        Wortsman et al. 2023, arXiv 2304.13013 (RMS_t above 2.3 before spikes; StableAdamW). Bai et al. 2025, arXiv
        2506.04805. Experiment Q2, docs/benchmarks/second_question.md.
    """

    family = "optimizer"
    status = "preview"
    aliases = ("stale-second-moment", "rms-spike", "StableAdamW")
    needs = ("replay",)
    rank = 34
    title = "the second moment of Adam lags behind gradients that have grown"

    def signature(self, seen: Observation) -> Suspicion | None:
        return None  # nothing that is recorded has been shown to tell it

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.optimizer_interventions import ClipUpdate

        return [
            ScratchCure(
                cure=Cure(
                    words="clip the update, as StableAdamW does",
                    code={
                        "torch": "pytorch_optimizer.StableAdamW(model.parameters(), lr=lr)",
                        "keras": "keras.optimizers.Adafactor(lr)   # clips its updates at a root mean square of 1",
                        "hf": 'TrainingArguments(optim="adafactor")',
                    },
                    applicability="unsafe",
                ),
                make=ClipUpdate,
            )
        ]
