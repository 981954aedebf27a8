"""The training of the second question: 14 features, 100 and 40 hidden units, 4 outputs, in its configurations.

"Explanation of spikes in training loss vs. iterations with Adam" (https://stats.stackexchange.com/q/303857) shows Adam
spiking where SGD is smooth. Its data are not public, so these are synthetic: 14 correlated features, and a teacher
network that makes classes or targets of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from whyspike.case import PLAIN, Vary
from whyspike.training import Training

FEATURES, OUTPUTS = 14, 4
N, BATCH, STEPS = 992, 32, 4000  # 992 = 31 * 32: no small last batch
Task = Literal["classification", "regression"]


class Picked:
    """Rows of a `Table`, as a sequence of samples that `collate` need not stack one by one."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= row < len(self.x):
            raise IndexError(row)
        return self.x[row], self.y[row]


class Table(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Inputs (N, 14) with classes (N,) or targets (N, 4). `odd` are the rows that were made outliers."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, odd: Sequence[int] = ()) -> None:
        self.x, self.y, self.odd = x, y, tuple(odd)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row], self.y[row]

    def __getitems__(self, rows: list[int]) -> Picked:
        return Picked(self.x[rows], self.y[rows])


def collate(samples: Any) -> Any:
    """A batch. Rows that are tensors already are not stacked one by one, which takes 8 ms for 992."""
    return (samples.x, samples.y) if isinstance(samples, Picked) else default_collate(samples)


def table(
    n: int = N,
    seed: int = 0,
    *,
    task: Task = "classification",
    noise: float = 0.1,
    outliers: float = 0.0,
    misplaced: int = 0,
) -> Table:
    """Draw the data.

    Args:
        noise: share of the classes that are drawn at random, or standard deviation of what is added to the targets,
            which have a standard deviation of 1.
        outliers: share of the rows whose inputs are multiplied by 20.
        misplaced: rows whose targets are multiplied by 100, as by a misplaced decimal point.
    """
    draw = torch.Generator().manual_seed(seed)
    mixing = 0.6 * torch.randn(FEATURES, FEATURES, generator=draw) / FEATURES**0.5 + 0.4 * torch.eye(FEATURES)
    x = torch.randn(n, FEATURES, generator=draw) @ mixing
    x = (x - x.mean(0)) / x.std(0)
    inner = torch.randn(FEATURES, 24, generator=draw) / FEATURES**0.5
    scores = torch.tanh(2 * x @ inner) @ torch.randn(24, OUTPUTS, generator=draw) / 24**0.5
    if task == "classification":
        y = (scores - scores.mean(0)).argmax(1)
        random = torch.rand(n, generator=draw) < noise
        y = torch.where(random, torch.randint(OUTPUTS, (n,), generator=draw), y)
    else:
        y = (scores - scores.mean(0)) / scores.std(0) + noise * torch.randn(n, OUTPUTS, generator=draw)
    odd = torch.randperm(n, generator=draw)[: round(outliers * n)].tolist()
    x[odd] *= 20
    wrong = torch.randperm(n, generator=draw)[:misplaced].tolist()
    if misplaced:
        y[wrong] *= 100
    return Table(x, y, [*odd, *wrong])


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, classes = batch
    return F.cross_entropy(model(inputs), classes)


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def network(width: float = 1.0) -> nn.Sequential:
    first, second = round(100 * width), round(40 * width)
    return nn.Sequential(
        nn.Linear(FEATURES, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, OUTPUTS)
    )


def training(
    seed: int = 0,
    vary: Vary = PLAIN,
    *,
    optimizer: Literal["adam", "sgd"] = "adam",
    lr: float = 1e-3,
    task: Task = "classification",
    n: int = N,
    batch_size: int | None = BATCH,
    steps: int = STEPS,
    noise: float = 0.1,
    outliers: float = 0.0,
    misplaced: int = 0,
    last: int = 0,
    drop_last: bool = False,
) -> Training:
    """Build one configuration.

    Args:
        batch_size: None for the full batch.
        last: samples in the last batch of an epoch; 0 for a full one.
    """
    rows = vary.of(n, vary.n, OUTPUTS)
    size = rows if batch_size is None else vary.of(batch_size, vary.batch_size)
    rows = rows // size * size + last
    data = table(rows, seed, task=task, noise=noise, outliers=outliers, misplaced=misplaced)
    torch.manual_seed(seed)
    model = network(vary.width)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    loader = DataLoader(
        data,
        batch_size=size,
        shuffle=batch_size is not None,
        drop_last=drop_last,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    return Training(
        model=model,
        optimizer=kind(model.parameters(), lr=lr * vary.lr),
        loss_fn=cross_entropy if task == "classification" else squared_error,
        loader=loader,
        epochs=max(1, round(steps / len(loader))),
    )
