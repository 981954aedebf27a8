"""Healthy trainings as people run them: small networks on small data, with all that is ordinary and looks odd.

Every run is drawn from a seed: task, network, optimizer, batch size, learning rate and its schedule, noise in the
labels or heavy tails in the targets, dropout, and a last batch that is full, dropped, or short. Nothing is wrong with
any of them: whatever a diagnosis shows beyond ordinary chance is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.training import Training

STEPS = 2_200  # of a run, about; 200 runs have more than 400,000
TASKS = ("digits", "digits-conv", "wine", "breast-cancer", "teacher", "regression", "t3", "lognormal", "counts", "gru")
OPTIMIZERS = ("sgd", "momentum", "adam")
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
SCHEDULES = ("constant", "cosine", "steps", "warmup-cosine")
LAST = ("full", "dropped", "short")
DEEPER = 0.7  # of the learning rate, for the convolutions: at the others' two images threw the network off in one of 20
LR = {
    "sgd": 0.05,
    "momentum": 0.01,
    "adam": 1e-3,
}  # at 32 samples; below, scaled by the root of the batch size (HEAVY: by it)
CLASSES = ("digits", "digits-conv", "wine", "breast-cancer", "teacher", "gru")
HEAVY = ("t3", "lognormal", "counts")  # clipped, as their owners must: one sample of the tail would throw the network
CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One healthy training."""

    seed: int
    task: str
    optimizer: str
    batch_size: int
    lr: float
    schedule: str
    last: str
    label_noise: float
    dropout: float
    hidden: int

    def words(self) -> str:
        parts = {k: v for k, v in asdict(self).items() if v}
        return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in parts.items())


def setup(number: int, seed: int) -> Setup:
    """The setup of that number: its optimizer, batch size and task go round, the rest is drawn."""
    rng = np.random.default_rng([seed, number])
    task = TASKS[number % len(TASKS)]
    optimizer = OPTIMIZERS[(number // len(TASKS)) % len(OPTIMIZERS)]
    size = BATCH_SIZES[(number + number // len(TASKS)) % len(BATCH_SIZES)]
    if task in ("wine", "breast-cancer", "gru"):
        size = min(size, 32)
    # A few samples of a heavy tail, clipped, make steps of one length: the square root let the network itself spike.
    power = 1.0 if task in HEAVY else 0.5
    share = DEEPER if task == "digits-conv" else 1.0
    return Setup(
        seed=int(rng.integers(1 << 30)),
        task=task,
        optimizer=optimizer,
        batch_size=size,
        lr=float(share * LR[optimizer] * math.exp(rng.uniform(-0.5, 0.25)) * min(1.0, size / 32) ** power),
        schedule=str(rng.choice(SCHEDULES)),
        last=str(rng.choice(LAST)),
        label_noise=float(rng.choice((0.0, 0.1, 0.2, 0.3))) if task in CLASSES else 0.0,
        dropout=float(rng.choice((0.0, 0.0, 0.2))),
        hidden=int(rng.choice((24, 48, 96))),
    )


def training(s: Setup) -> Training:
    """Build it."""
    rng = np.random.default_rng([s.seed, 1])
    torch.manual_seed(s.seed)
    x, y = dataset(s.task, rng)
    n = len(x)
    if s.label_noise:
        wrong = rng.random(n) < s.label_noise
        y[wrong] = rng.integers(0, int(y.max()) + 1, wrong.sum())
    if s.last == "full":
        n -= n % s.batch_size
    elif s.last == "short":  # an eighth of a batch to a whole one
        short = int(rng.integers(max(1, s.batch_size // 8), s.batch_size))
        n -= n % s.batch_size
        n += short - (s.batch_size if n + short > len(x) else 0)
    data = TensorDataset(torch.from_numpy(x[:n]), torch.from_numpy(y[:n]))
    model = network(s, data)
    params = list(model.parameters())
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(params, lr=s.lr)
        if s.optimizer == "adam"
        else torch.optim.SGD(params, lr=s.lr, momentum=0.9 if s.optimizer == "momentum" else 0.0)
    )
    loader = DataLoader(
        data,
        batch_size=s.batch_size,
        shuffle=True,
        drop_last=s.last == "dropped",
        generator=torch.Generator().manual_seed(s.seed),
    )
    epochs = math.ceil(STEPS / len(loader))
    steps = epochs * len(loader)
    return Training(
        model=model,
        optimizer=optimizer,
        loss_fn=LOSSES.get(s.task, cross_entropy),
        loader=loader,
        epochs=epochs,
        scheduler=scheduler(s.schedule, optimizer, steps),
        clip_grad_norm=CLIP if s.task in HEAVY else None,
    )


def scheduler(name: str, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    factors: dict[str, Callable[[int], float]] = {
        "cosine": lambda k: 0.5 * (1 + math.cos(math.pi * k / steps)),
        "steps": lambda k: 0.1 ** ((k > steps // 2) + (k > 4 * steps // 5)),
        "warmup-cosine": lambda k: min(1.0, (k + 1) / 100) * 0.5 * (1 + math.cos(math.pi * k / steps)),
    }
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors[name]) if name in factors else None


# --------------------------------------------------------------------------- data, networks, losses


def dataset(task: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets in random order, inputs about standardised."""
    from sklearn import datasets

    if task in ("digits", "digits-conv", "wine", "breast-cancer"):
        load = {"wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}
        x, y = load.get(task, datasets.load_digits)(return_X_y=True)
        x = (x - 5) / 6 if task.startswith("digits") else (x - x.mean(0)) / x.std(0)
        order = rng.permutation(len(x))
        x, y = x[order].astype(np.float32), y[order]
        return (x.reshape(-1, 1, 8, 8) if task == "digits-conv" else x), y
    if task == "gru":  # which of three frequencies a noisy wave has
        y = rng.integers(0, 3, 1024)
        t = np.arange(12)
        x = np.sin((0.5 + 0.3 * y[:, None]) * t + rng.uniform(0, 6, (1024, 1))) + 0.3 * rng.standard_normal((1024, 12))
        return x[:, :, None].astype(np.float32), y
    n = int(rng.integers(1200, 3000))
    x = rng.standard_normal((n, 14)).astype(np.float32)
    hidden = np.tanh(x @ rng.standard_normal((14, 20)) / 3)
    if task == "teacher":
        return x, (hidden @ rng.standard_normal((20, 4))).argmax(1)
    signal = hidden @ rng.standard_normal((20, 1)) / 2
    if task == "counts":
        return x, rng.poisson(np.exp(np.clip(signal, -3, 2))).astype(np.float32)
    noise = {
        "regression": lambda: 0.5 * rng.standard_normal((n, 1)),
        "t3": lambda: 0.5 * rng.standard_t(3, (n, 1)),
        "lognormal": lambda: 0.5 * rng.lognormal(0, 1, (n, 1)),
    }[task]()
    return x, (signal + noise).astype(np.float32)


class Gru(nn.Module):
    """Scores from the last state of a GRU."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0][:, -1])


def network(s: Setup, data: TensorDataset) -> nn.Module:
    x, y = data.tensors
    outputs = int(y.max()) + 1 if s.task in CLASSES else 1
    if s.task == "gru":
        return Gru(16, outputs)
    if s.task == "digits-conv":
        norm = [nn.BatchNorm2d(8)] if s.batch_size >= 16 and s.last != "short" else []
        first = [nn.Conv2d(1, 8, 3, padding=1), *norm, nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.Flatten(), nn.Dropout(s.dropout), nn.Linear(16 * 16, outputs))
    h = s.hidden
    return nn.Sequential(
        nn.Linear(x.shape[1], h), nn.ReLU(), nn.Dropout(s.dropout), nn.Linear(h, h // 2), nn.ReLU(),
        nn.Linear(h // 2, outputs),
    )  # fmt: skip


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def poisson(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.poisson_nll_loss(model(batch[0]), batch[1])


LOSSES = {"regression": squared_error, "t3": squared_error, "lognormal": squared_error, "counts": poisson}
