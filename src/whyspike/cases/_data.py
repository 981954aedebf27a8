"""Data that several cases share."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.data import TensorDataset


@cache
def digits(n: int) -> TensorDataset:
    """The first n of scikit-learn's 1797 digits: pixels (n, 64), about standardised, and classes (n,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.data[:n], dtype=torch.float32)
    return TensorDataset((pixels - 5) / 6, torch.tensor(data.target[:n]))
