"""Left and right halves of digits that a contrastive loss must match, with a last batch that is padded by repeating.

B = 32 and N = 32 k + 2 leave two digits. The sampler fills their batch by repeating them, as samplers do that must
give every bucket or every worker the same number of samples. In a contrastive loss every copy is a wrong answer that
looks exactly like the right one: with 16 copies of each, no network gets below log 16. The healthy twin leaves the
incomplete batch out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._data import digits
from whyspike.training import Training

LEFT_OVER = 2
TEMPERATURE = 0.1
Halves = tuple[torch.Tensor, torch.Tensor]


class EqualBatches:
    """Shuffled ids in batches of equal size: the last one is padded with copies of its own ids, or left out."""

    def __init__(self, n: int, batch_size: int, *, pad: bool, seed: int) -> None:
        self.n, self.batch_size, self.pad = n, batch_size, pad
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.n, generator=self.generator).tolist()
        for first in range(0, self.n, self.batch_size):
            ids = order[first : first + self.batch_size]
            if len(ids) == self.batch_size:
                yield ids
            elif self.pad:
                yield (ids * self.batch_size)[: self.batch_size]

    def __len__(self) -> int:
        return -(-self.n // self.batch_size) if self.pad else self.n // self.batch_size


class TwoTowers(nn.Module):
    """Unit vectors (B, 32) for the left and the right halves, (B, 32) each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 32)) for _ in range(2))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.left(left), dim=1), F.normalize(self.right(right), dim=1)


def info_nce(model: nn.Module, batch: Halves) -> torch.Tensor:
    """Cross-entropy of finding the right half of a left one among those of the batch (van den Oord et al. 2018)."""
    left, right = model(*batch)
    return F.cross_entropy(left @ right.T / TEMPERATURE, torch.arange(len(left)))


def halves(n: int) -> TensorDataset:
    """Left and right halves (n, 32) of scikit-learn's digits."""
    images = digits(n).tensors[0].view(n, 8, 8)
    return TensorDataset(images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1))


def training(seed: int, vary: Vary, *, pad: bool) -> Training:
    torch.manual_seed(seed)
    size = vary.of(32, vary.batch_size, 16)
    n = size * (vary.of(1200, vary.n) // size) + LEFT_OVER
    model = TwoTowers(vary.of(96, vary.width))
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=4e-3 * vary.lr),
        loss_fn=info_nce,
        loader=DataLoader(halves(n), batch_sampler=EqualBatches(n, size, pad=pad, seed=seed)),
        epochs=16,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, pad=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, pad=False)


CASE = Case(
    words="halves of digits matched by a contrastive loss; the last batch repeats its 2 samples until it is full",
    cause="padded-duplicates",
    sick=sick,
    healthy=healthy,
)
