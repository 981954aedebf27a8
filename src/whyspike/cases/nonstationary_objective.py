"""The log of a small GAN on digits, and, as its twin, that of an autoencoder on the same images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from whyspike.case import PLAIN, Case, Log, Vary
from whyspike.cases._data import digits

NOISE = 8


def _gan(folder: Path, seed: int, vary: Vary) -> Path:
    torch.manual_seed(seed)
    width = vary.of(64, vary.width, 16)
    maker = nn.Sequential(nn.Linear(NOISE, width), nn.ReLU(), nn.Linear(width, 64))
    judge = nn.Sequential(nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    optimizers = [torch.optim.Adam(net.parameters(), lr=2e-3 * vary.lr, betas=(0.5, 0.999)) for net in (judge, maker)]
    path = folder / "log.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("step,d_loss,g_loss\n")
        step = 0
        for _ in range(10):
            for real, _ in _loader(seed, vary):
                fake = maker(torch.randn(len(real), NOISE))
                one, nil = torch.ones(len(real), 1), torch.zeros(len(real), 1)
                losses = []
                for k, optimizer in enumerate(optimizers):
                    if k:
                        loss = F.binary_cross_entropy_with_logits(judge(fake), one)
                    else:
                        loss = F.binary_cross_entropy_with_logits(judge(real), one)
                        loss = loss + F.binary_cross_entropy_with_logits(judge(fake.detach()), nil)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
                file.write(f"{step},{losses[0]},{losses[1]}\n")
                step += 1
    return path


def _autoencoder(folder: Path, seed: int, vary: Vary) -> Path:
    torch.manual_seed(seed)
    width = vary.of(64, vary.width, 16)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, NOISE), nn.Linear(NOISE, 64))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3 * vary.lr)
    path = folder / "log.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("step,loss\n")
        step = 0
        for _ in range(10):
            for real, _ in _loader(seed, vary):
                loss = F.mse_loss(net(real), real)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                file.write(f"{step},{loss.item()}\n")
                step += 1
    return path


def _loader(seed: int, vary: Vary) -> DataLoader:
    n, batch_size = min(1797, vary.of(1400, vary.n, 200)), vary.of(32, vary.batch_size, 8)
    return DataLoader(digits(n), batch_size=batch_size, shuffle=True, drop_last=True)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Log:
    """The telling run."""
    return Log(write=partial(_gan, seed=seed, vary=vary))


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return Log(write=partial(_autoencoder, seed=seed, vary=vary))


CASE = Case(
    words="the log of a GAN on digits; the twin is an autoencoder",
    cause="nonstationary-objective",
    sick=sick,
    healthy=healthy,
)
