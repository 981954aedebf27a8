"""An SSD-like detector whose loss is divided by the number of boxes, and then by the batch size again.

Images are composed from scikit-learn's digits: 32 x 32 pixels, 4 x 4 cells, one to four digits. The network gives
each cell scores for 11 classes (0 is background) and an offset of the box. N = 1026 and B = 32 leave a last batch of
2 images, whose loss and gradient are 16 times too large. The learning rate is the one a user would find for the
shrunken loss, 32 times that of an honest one. The healthy twin divides once, at a learning rate a third lower: at the
same one the two images alone are enough, in one run of ten, for a spike that is seen (small-last-batch).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

CELLS, CELL_PIXELS, CLASSES = 4, 8, 11
CALM = 0.0085  # the twin's learning rate
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@cache
def scenes(n: int = 1026, seed: int = 0) -> TensorDataset:
    """Images (N, 1, 32, 32), the class of every cell (N, 16) and the offset of its box (N, 16, 2)."""
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    side = CELLS * CELL_PIXELS
    images = np.zeros((n, 1, side, side), np.float32)
    classes = np.zeros((n, CELLS * CELLS), np.int64)
    offsets = np.zeros((n, CELLS * CELLS, 2), np.float32)
    for i in range(n):
        for cell in rng.choice(CELLS * CELLS, rng.integers(1, 5), replace=False):
            corner = np.array(divmod(cell, CELLS)) * CELL_PIXELS
            top, left = np.clip(corner + rng.integers(-1, 2, 2), 0, side - 8)
            digit = rng.integers(len(labels))
            patch = images[i, 0, top : top + 8, left : left + 8]
            np.maximum(patch, pixels[digit].reshape(8, 8) / 16, out=patch)
            classes[i, cell] = 1 + labels[digit]
            offsets[i, cell] = (np.array([top, left]) - corner) / CELL_PIXELS
    return TensorDataset(torch.tensor((images - 0.1) * 3), torch.tensor(classes), torch.tensor(offsets))


class Detector(nn.Module):
    """Scores (B, 16, 11) and offsets (B, 16, 2) for images (B, 1, 32, 32)."""

    def __init__(self, widths: tuple[int, int] = (32, 48)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, widths[0], 4, stride=4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(*widths, 4, stride=2, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Conv2d(widths[1], CLASSES + 2, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = self.head(self.features(images)).flatten(2).transpose(1, 2)
        return cells[..., :CLASSES], cells[..., CLASSES:]


def multibox_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of all cells plus smooth-L1 of the positive ones, over the number of boxes in the batch."""
    images, classes, offsets = batch
    scores, predicted = model(images)
    positive = classes > 0
    total = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="sum") + F.smooth_l1_loss(
        predicted[positive], offsets[positive], reduction="sum"
    )
    return total / positive.sum().clamp(min=1)


def multibox_loss_averaged_twice(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The fault: already an average over the boxes, divided by the batch size once more."""
    return multibox_loss(model, batch) / len(batch[0])


def training(
    *, twice: bool, left: int = 2, seed: int = 0, vary: Vary = PLAIN, epochs: int = 12, lr: float = 0.0125
) -> Training:
    """The detector's training, with so many images in its last batch.

    `lr` is that of the honest loss; the faulty one gets batch size times as much.
    """
    torch.manual_seed(seed)
    model = Detector((vary.of(32, vary.width), vary.of(48, vary.width)))
    batch_size, lr = vary.of(32, vary.batch_size), lr * vary.lr
    n = vary.of(32, vary.n / vary.batch_size) * batch_size + left
    optimizer = torch.optim.SGD(model.parameters(), lr=lr * batch_size if twice else lr, momentum=0.9)
    loader = DataLoader(scenes(n), batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Training(
        model=model,
        optimizer=optimizer,
        loss_fn=multibox_loss_averaged_twice if twice else multibox_loss,
        loader=loader,
        epochs=epochs,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(twice=True, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(twice=False, seed=seed, vary=vary, lr=CALM)


CASE = Case(
    words="an SSD-like detector whose loss is divided by its boxes and by the batch size; the last batch has 2 images",
    cause="double-averaged-loss",
    also_true=("momentum-carry-over",),
    sick=sick,
    healthy=healthy,
)
