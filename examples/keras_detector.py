"""The first question in Keras itself: `KERAS_BACKEND=torch whyspike prove examples/keras_detector.py:training`.

An SSD-like detector on composed digits, as `ssd_keras` has its loss: a vector (B,), the sum over a sample's anchors
divided by the boxes of the whole batch. Keras averages it over the batch once more. `python examples/keras_detector.py`
trains it by `fit` and shows the diagnosis; LOSSES has the same loss in other forms, cures among them.
"""

# Keras is an extra, and not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # before anybody imports keras

import keras
import torch
from keras import ops
from torch.utils.data import DataLoader, TensorDataset

from whyspike import Training
from whyspike.cases.double_averaged_loss import scenes

BATCH, LEFT, EPOCHS = 32, 2, 12  # the last batch of an epoch has LEFT images
LR = 0.004  # that of an honest loss; at three times as much this small detector is at the edge of stability
CALM = 0.0085  # at LR, in one run of ten, the two images alone are enough for a spike
Loss = Callable[[Any, Any], Any]


def cells_and_boxes(y: Any, p: Any) -> tuple[Any, Any]:
    """Cross-entropy and smooth-L1 of every anchor (B, 16), and the number of boxes in the batch."""
    classes = ops.cast(y[..., 0], "int32")
    positive = ops.cast(classes > 0, "float32")
    scores = keras.losses.sparse_categorical_crossentropy(classes, p[..., :11], from_logits=True)
    d = ops.abs(p[..., 11:] - y[..., 1:])
    place = ops.sum(ops.where(d < 1, 0.5 * d * d, d - 0.5), -1)
    return scores + place * positive, ops.maximum(ops.sum(positive), 1.0)


def scalar(y: Any, p: Any) -> Any:
    """Honest: Keras leaves a scalar as it is."""
    cells, boxes = cells_and_boxes(y, p)
    return ops.sum(cells) / boxes


def vector(y: Any, p: Any) -> Any:
    """(B,), divided by the boxes already: Keras averages it."""
    cells, boxes = cells_and_boxes(y, p)
    return ops.sum(cells, -1) / boxes


def of_anchors(y: Any, p: Any) -> Any:
    """(B, 16), divided by the boxes already: Keras averages it."""
    cells, boxes = cells_and_boxes(y, p)
    return cells / boxes


def times_actual(y: Any, p: Any) -> Any:
    """A cure."""
    return vector(y, p) * ops.cast(ops.shape(y)[0], "float32")


def times_nominal(y: Any, p: Any) -> Any:
    """No cure: another unit."""
    return vector(y, p) * float(BATCH)


class Summed(keras.losses.Loss):
    """The cleanest cure, as `Summed(reduction="sum")`."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return vector(y_true, y_pred)


# Each with the factor of the honest learning rate that makes the same step on a full batch.
LOSSES: dict[str, tuple[Callable[[], Any], float]] = {
    "a scalar": (lambda: scalar, 1.0),
    "(B,), divided by the boxes": (lambda: vector, BATCH),
    "(B, anchors), divided by the boxes": (lambda: of_anchors, 16 * BATCH),
    '(B,), Loss(reduction="sum")': (lambda: Summed(reduction="sum"), 1.0),
    "(B,), times ops.shape(y)[0]": (lambda: times_actual, 1.0),
    "(B,), times the nominal batch size": (lambda: times_nominal, 1.0),
}


def data(n: int = 16 * BATCH + LEFT) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 32, 32, 1), and the class and the box of every cell (n, 16, 3)."""
    images, classes, offsets = scenes(n).tensors
    return images.permute(0, 2, 3, 1).contiguous(), torch.cat([classes[..., None].float(), offsets], -1)


def detector(loss: Any, lr: float, *, seed: int = 0, widths: tuple[int, int] = (8, 16), **optimizer: Any) -> Any:
    """The compiled model; `optimizer` as `keras.optimizers.SGD` takes it (clipnorm, global_clipnorm, …)."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(widths[0], 4, strides=4),
            layers.LeakyReLU(0.1),
            layers.Conv2D(widths[1], 4, strides=2, padding="same"),
            layers.LeakyReLU(0.1),
            layers.Conv2D(13, 1),
            layers.Reshape((16, 13)),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(lr, momentum=0.9, **optimizer), loss=loss)
    return model


def loader(seed: int = 0, n: int = 16 * BATCH + LEFT) -> DataLoader[Any]:
    """As `fit` takes it."""
    draw = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*data(n)), batch_size=BATCH, shuffle=True, generator=draw)


def training(seed: int = 0, form: str = "(B,), divided by the boxes") -> Training:
    """For `whyspike prove`, which trains the cures from scratch."""
    from whyspike.integrations.keras import training as as_training

    loss, factor = LOSSES[form]
    return as_training(detector(loss(), factor * LR, seed=seed), loader(seed), epochs=EPOCHS)


def main() -> None:
    """Train by `fit`, recorded, and show the diagnosis."""
    from whyspike.integrations.keras import SpikeRecorder

    loss, factor = LOSSES["(B,), divided by the boxes"]
    spikes = SpikeRecorder()
    detector(loss(), factor * LR).fit(loader(), epochs=EPOCHS, shuffle=False, verbose=2, callbacks=[spikes])
    print(spikes.diagnose(prove=True))  # noqa: T201


if __name__ == "__main__":
    main()
