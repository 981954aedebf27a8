"""The sick trainings of benchmarks/frameworks.py and their healthy twins, each as the parts of a training.

They are cases of src/whyspike/cases, smaller. Each has its network and its loss in Keras' own words, too.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _trainers import Parts
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Vary
from whyspike.cases import (
    double_averaged_loss,
    grad_accum_normalization,
    gru_recommender,
    outlier_sample,
    small_last_batch,
    unstable_cross_entropy,
)
from whyspike.cases._tabular import Table, collate
from whyspike.training import Training

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))  # the detector in Keras is one of them


@dataclass(frozen=True, kw_only=True)
class Sick:
    """A training and its twin.

    Args:
        cause: the answer.
        build: the parts for a seed; sick, or its twin.
    """

    words: str
    cause: str
    build: Callable[[int, bool], Parts]


def parts(made: Training, seed: int, **how: Any) -> Parts:
    assert isinstance(made.loader, DataLoader)
    return Parts(
        net=made.model,
        optimizer=made.optimizer,
        loss_fn=made.loss_fn,
        loader=made.loader,
        epochs=made.epochs,
        seed=seed,
        **how,
    )


def sequential(*layers: Any) -> Any:
    import keras

    return keras.Sequential(list(layers))


def compiled(model: Any, optimizer: Any, loss: Any) -> Any:
    model.compile(optimizer=optimizer, loss=loss)
    return model


# --------------------------------------------------------------------------- the first question

SMALL = Vary(n=0.5, width=0.5)


def detector(seed: int, sick: bool) -> Parts:
    build = double_averaged_loss.sick if sick else double_averaged_loss.healthy
    return parts(build(seed, SMALL), seed, keras=lambda opt: keras_detector(opt, twice=sick), keras_batch=cells)


def cells(batch: Any) -> Any:
    """Images (B, 32, 32, 1), and the class and the box of every cell (B, 16, 3)."""
    images, classes, offsets = batch
    return images.permute(0, 2, 3, 1).contiguous(), torch.cat([classes[..., None].float(), offsets], -1)


def keras_detector(optimizer: Any, *, twice: bool) -> Any:
    import keras_detector as example

    widths = SMALL.of(32, SMALL.width), SMALL.of(48, SMALL.width)
    model = example.detector("mse", 1.0, widths=widths)
    return compiled(model, optimizer, example.vector if twice else example.scalar)


# --------------------------------------------------------------------------- the second question


def last_of_one(seed: int, sick: bool) -> Parts:
    made = small_last_batch.training(left=1 if sick else 0, seed=seed)
    loader: Any = made.loader
    table = Table(*loader.dataset.tensors)  # the same rows; one by one they cost more to fetch than the training itself
    made.loader = DataLoader(
        table, batch_size=loader.batch_size, shuffle=True, generator=loader.generator, collate_fn=collate
    )
    return parts(made, seed, keras=keras_regression)


def keras_regression(optimizer: Any) -> Any:
    import keras

    layers = keras.layers
    model = sequential(
        keras.Input((small_last_batch.FEATURES,)),
        layers.Dense(128, activation="tanh"),
        layers.Dense(64, activation="tanh"),
        layers.Dense(1),
    )
    return compiled(model, optimizer, "mean_squared_error")


# --------------------------------------------------------------------------- the third question

ITEMS, HIDDEN = 500, 48


def recommender(seed: int, sick: bool) -> Parts:
    made = gru_recommender.training(seed, n=3840, epochs=16, hidden=HIDDEN, n_items=ITEMS, replacement=not sick)
    return parts(made, seed, own_order=True, keras=keras_recommender)


def keras_recommender(optimizer: Any) -> Any:
    import keras

    layers = keras.layers
    model = sequential(
        keras.Input((10,), dtype="int64"),
        layers.Embedding(ITEMS + 1, HIDDEN // 2),
        layers.GRU(HIDDEN),
        layers.Dense(ITEMS),
    )
    return compiled(model, optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


# --------------------------------------------------------------------------- accumulation


def accumulated(seed: int, sick: bool) -> Parts:
    case = grad_accum_normalization
    made = case.loop(seed, PLAIN, by_tokens=not sick)
    groups = case.ACCUMULATE * case.STEPS
    short = max(1, groups // 400)
    n_long, n_short = case.MICRO * (groups - short), case.MICRO * short
    data = case.Sequences(case.sequences(n_long, n_short))
    return Parts(
        net=made.model,
        optimizer=made.optimizer,
        loss_fn=case.mean_over_tokens,
        loader=DataLoader(data, batch_sampler=case.ByLength(n_long, n_short, case.MICRO, seed), collate_fn=case.padded),
        epochs=case.EPOCHS,
        seed=seed,
        accumulate=case.ACCUMULATE,
        by_tokens=not sick,
        own_order=True,
        keras=keras_tokens,
    )


def keras_tokens(optimizer: Any) -> Any:
    import keras

    case, layers = grad_accum_normalization, keras.layers
    model = sequential(
        keras.Input((None,), dtype="int64"),
        layers.Embedding(case.VOCABULARY + 1, 32),
        layers.Dense(64, activation="relu"),
        layers.Dense(case.VOCABULARY),
    )
    return compiled(
        model, optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=case.IGNORED)
    )


# --------------------------------------------------------------------------- one outlier, one NaN


def misplaced(seed: int, sick: bool) -> Parts:
    made = (outlier_sample.sick if sick else outlier_sample.healthy)(seed, PLAIN)
    return parts(made, seed, keras=keras_table)


def keras_table(optimizer: Any) -> Any:
    import keras

    layers = keras.layers
    model = sequential(
        keras.Input((14,)), layers.Dense(100, activation="relu"), layers.Dense(40, activation="relu"), layers.Dense(4)
    )
    return compiled(model, optimizer, "mean_squared_error")


def log_of_zero(seed: int, sick: bool) -> Parts:
    made = (unstable_cross_entropy.sick if sick else unstable_cross_entropy.healthy)(seed, PLAIN)
    return parts(
        made,
        seed,
        keras=lambda optimizer: keras_odd(optimizer, by_hand=sick),
        keras_batch=lambda batch: (batch[0], batch[1][:, None]),
    )


def keras_odd(optimizer: Any, *, by_hand: bool) -> Any:
    import keras
    from keras import ops

    def loss(y: Any, p: Any) -> Any:
        return -(y * ops.log(p) + (1 - y) * ops.log(1 - p))

    def from_logits(y: Any, p: Any) -> Any:
        return keras.losses.binary_crossentropy(y, p, from_logits=True)

    layers = keras.layers
    model = sequential(
        keras.Input((64,)),
        layers.Dense(128, activation="relu"),
        layers.Dense(1, activation="sigmoid" if by_hand else None),
    )
    return compiled(model, optimizer, loss if by_hand else from_logits)


TRAININGS: dict[str, Sick] = {
    "first question": Sick(
        words="a detector whose loss is divided by its boxes and by the batch size; the last batch has 2 images",
        cause="double-averaged-loss",
        build=detector,
    ),
    "second question": Sick(
        words="a regression with noisy targets whose last batch has one sample",
        cause="small-last-batch",
        build=last_of_one,
    ),
    "third question": Sick(
        words="a GRU recommender, reshuffled every epoch",
        cause="epochal-sawtooth",
        build=recommender,
    ),
    "accumulation": Sick(
        words="four micro-batches of very different token counts; the mean of their means",
        cause="grad-accum-normalization",
        build=accumulated,
    ),
    "outlier": Sick(
        words="two of 7,936 targets are 100 times too large",
        cause="outlier-sample",
        build=misplaced,
    ),
    "NaN": Sick(
        words="a binary cross-entropy written by hand: log(0)",
        cause="unstable-cross-entropy",
        build=log_of_zero,
    ),
}
