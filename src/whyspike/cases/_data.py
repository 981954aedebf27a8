"""Data that several cases share."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.data import Dataset, TensorDataset


@cache
def digits(n: int) -> TensorDataset:
    """The first n of scikit-learn's 1797 digits: pixels (n, 64), about standardised, and classes (n,)."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:n], dtype=torch.float32)
    return TensorDataset((images - 5) / 6, torch.tensor(classes[:n]))


class NoisyDigits(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Digits drawn at random, with new noise at every look, so that none is learnt by heart and the loss has a floor.

    A training that learns its samples by heart has a sawtooth of its own (epochal-sawtooth).
    """

    def __init__(self, n: int, *, noise: float = 1.0, seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        pixels, classes = digits(1797).tensors
        pick = torch.randint(len(pixels), (n,), generator=self.draw)
        self.pixels, self.classes, self.noise = pixels[pick], classes[pick], noise

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        noise = torch.randn(len(rows), 64, generator=self.draw)
        return list(zip(self.pixels[rows] + self.noise * noise, self.classes[rows], strict=True))


@cache
def noisy_digits(n: int, noise: float, seed: int = 0) -> TensorDataset:
    """N digits drawn with replacement, each with noise of its own: data enough that none is seen twice."""
    draw = torch.Generator().manual_seed(seed)
    images, classes = digits(1797).tensors
    pick = torch.randint(len(images), (n,), generator=draw)
    return TensorDataset(images[pick] + noise * torch.randn(n, 64, generator=draw), classes[pick])
