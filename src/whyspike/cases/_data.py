"""Data that several cases share."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.data import TensorDataset


@cache
def digits(n: int) -> TensorDataset:
    """The first n of scikit-learn's 1797 digits: pixels (n, 64), about standardised, and classes (n,)."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:n], dtype=torch.float32)
    return TensorDataset((images - 5) / 6, torch.tensor(classes[:n]))
