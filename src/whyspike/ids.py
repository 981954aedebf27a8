"""The canonical ids of causes: one id per cause, for ever. The catalogue has some of them; the others are planned.

Aliases are search words and belong to the cause's own file.
"""

from __future__ import annotations

from collections.abc import Mapping

from whyspike.types import Family

IDS: Mapping[Family, tuple[str, ...]] = {
    "order": (
        "epochal-sawtooth", "memorization-step", "small-last-batch", "fixed-order", "shuffle-buffer", "length-grouped",
        "padded-duplicates", "bad-shard", "dataloader-reseed", "resume-data-replay",
    ),
    "scale": (
        "double-averaged-loss", "sum-reduction", "wrong-denominator", "grad-accum-normalization",
        "partial-accumulation-window", "metric-unweighted-mean", "running-mean-reset", "logging-alias",
        "nan-filtered-log", "mixed-loss-terms", "batch-size-noise",
    ),
    "optimizer": (
        "lr-too-high", "adaptive-eos", "no-warmup", "lr-restart", "momentum-carry-over", "adam-v-lag",
        "adam-time-correlation", "adam-eps-too-small", "adam-eps-too-large", "slingshot", "bn-wd-periodic",
        "weight-decay-misuse", "grads-not-zeroed", "clip-misuse", "exploding-gradients-rnn", "vanishing-gradients",
    ),
    "data": (
        "outlier-sample", "hard-but-legit-data", "data-mixture-change", "sequence-length-ramp", "batch-size-ramp",
        "augmentation-switch", "overfitting",
    ),
    "numerics": (
        "unstable-cross-entropy", "low-precision-overflow", "gradscaler-skip", "attention-logit-growth",
        "output-logit-divergence", "silent-data-corruption", "nondeterminism",
    ),
    "network": (
        "bn-small-batch", "train-eval-mode-mismatch", "init-out-of-scale", "embedding-gradient",
        "missing-normalization", "relative-update-imbalance", "moe-routing-collapse", "moving-parts",
    ),
    "control": (
        "resume-without-state", "eval-side-effects", "ddp-unequal-batches", "missing-all-reduce", "stale-gradients",
        "target-update", "nonstationary-objective",
    ),
}  # fmt: skip


def family_of(cause: str) -> Family | None:
    """The family of a canonical id; None when the id is not one."""
    return next((family for family, ids in IDS.items() if cause in ids), None)
