"""A log of every tenth step of a training that spikes on the last batch of every epoch.

Digits whose loss is averaged twice; the last batch has 2 images instead of 32, and a loss 16 times as high. An epoch
has 33 steps, so that the log meets its last step once in ten epochs. In the twin the loss is averaged once.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Log, Vary
from whyspike.cases._data import digits

LAST = 2  # images of the last batch
MEETINGS = 6  # logged values of an epoch's last step


def _log(seed: int, vary: Vary, *, twice: bool) -> Log:
    def write(folder: Path) -> Path:
        torch.manual_seed(seed)
        width = vary.of(32, vary.width)
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        batch_size = vary.of(32, vary.batch_size, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002 * vary.lr * (batch_size if twice else 1))
        full = vary.of(1024, vary.n) // batch_size
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(digits(full * batch_size + LAST), batch_size=batch_size, shuffle=True, generator=order)
        every = next(k for k in range(10, 100) if gcd(k, full + 1) == 1)
        rows, step = ["epoch,step,train_loss"], 0
        for epoch in range(MEETINGS * every):
            for images, classes in loader:
                loss = F.cross_entropy(model(images), classes)
                if twice:
                    loss = loss / len(images)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % every == 0:
                    rows.append(f"{epoch},{step},{loss.item():.6f}")
                step += 1
        path = folder / "log.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return Log(write=write)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return _log(seed, vary, twice=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return _log(seed, vary, twice=False)


CASE = Case(
    words="a log of every tenth step of a training that spikes at the end of every epoch, of 33 steps",
    cause="logging-alias",
    sick=sick,
    healthy=healthy,
)
