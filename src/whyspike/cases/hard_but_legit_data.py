"""A regression in which one of 2,976 samples comes from a corner of its own, with large but right targets.

Each time that it is drawn, its gradient fills the batch. The network learns it within some twenty epochs, and from then
on it does nothing. In the healthy twin it is an ordinary sample.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._tabular import BATCH, OUTPUTS, Table, collate, network, squared_error, table
from whyspike.training import Training

N, STEPS, LR = 2976, 3348, 0.05
RARE, CORNER, FAR = 1, 6.0, 15.0  # samples; where its first two features are; and its targets


def data(seed: int, n: int, *, rare: bool) -> Table:
    plain = table(n, seed, task="regression", noise=0.05)
    if not rare:
        return plain
    x, y = plain.x.clone(), plain.y.clone()
    picked = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:RARE]
    x[picked, 0], x[picked, 1] = CORNER, -CORNER
    y[picked] += FAR * torch.tensor([1.0, -1.0] * (OUTPUTS // 2))
    return Table(x, y, picked.tolist())


def training(seed: int, vary: Vary, *, rare: bool) -> Training:
    size = vary.of(BATCH, vary.batch_size)
    samples = data(seed, vary.of(N, vary.n) // size * size, rare=rare)
    torch.manual_seed(seed)
    model: nn.Module = network(vary.width)
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR * vary.lr),
        loss_fn=squared_error,
        loader=DataLoader(
            samples,
            batch_size=size,
            shuffle=True,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(seed),
        ),
        epochs=round(STEPS * BATCH / N),
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, rare=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, rare=False)


CASE = Case(
    words="a regression with SGD; one of 2,976 samples is far from all others, but right",
    cause="hard-but-legit-data",
    sick=sick,
    healthy=healthy,
)
