"""The log of a classifier of digits whose loader does not shuffle; steps and losses are all that is in it.

The images lie in random order, so that an unshuffled pass is as good as any; only it is always the same one. The twin
shuffles.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset

from whyspike.case import PLAIN, Case, Log, Vary
from whyspike.cases._data import digits


def _write(folder: Path, seed: int, vary: Vary, *, shuffle: bool) -> Path:
    torch.manual_seed(seed)
    n, batch_size = min(1797, vary.of(1400, vary.n, 200)), vary.of(16, vary.batch_size, 4)
    data = Subset(digits(1797), torch.randperm(1797)[:n].tolist())
    width = vary.of(32, vary.width, 8)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 * vary.lr)
    loader = DataLoader(
        data, batch_size=batch_size, shuffle=shuffle, drop_last=True, generator=torch.Generator().manual_seed(seed)
    )
    path = folder / "log.txt"
    with path.open("w", encoding="utf-8") as file:
        step = 0
        for _ in range(4):
            for pixels, classes in loader:
                loss = F.cross_entropy(model(pixels), classes)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                file.write(f"{step} {loss.item():.6f}\n")
                step += 1
    return path


def sick(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return Log(write=partial(_write, seed=seed, vary=vary, shuffle=False))


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return Log(write=partial(_write, seed=seed, vary=vary, shuffle=True))


CASE = Case(
    words="the log of a classifier of digits, of steps and losses alone; the loader does not shuffle",
    cause="fixed-order",
    sick=sick,
    healthy=healthy,
)
