"""What recording costs: the step time with the recorder over the step time without it.

    python benchmarks/overhead.py            # whyspike alone, MLP and GPT
    python benchmarks/overhead.py --peers    # and four peers, from a scratch environment, in the same run

Every arm trains its own copy of the same network in its own loop. The arms take turns, a block of steps each, in an
order drawn afresh for every round; a round gives one ratio per arm to the plain loop of the same round. Reported are
the median ratio over the rounds and its 95 % upper bootstrap bound. The plain loop runs twice: the second is the
control, which shows what the machine's noise alone makes of a ratio.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import whyspike

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks" / "overhead.md"


# --------------------------------------------------------------------------- two trainings


class Rows(Dataset):
    """Tensors, fetched a batch at a time, so that the loader does not hide the recorder's cost behind its own."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> Any:
        return tuple(t[i] for t in self.tensors)

    def __getitems__(self, rows: list[int]) -> Any:
        return tuple(t[rows] for t in self.tensors)


class Transformer(nn.Module):
    """A GPT of 10.9M parameters: 6 layers of width 384, context 128, vocabulary 256."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, 384), nn.Embedding(128, 384)
        layer = nn.TransformerEncoderLayer(
            384, 6, 1536, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(384, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(128), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.layers(h, mask=self.mask, is_causal=True))


@dataclass
class Setup:
    """A training to measure: what builds it, and how many steps a block has."""

    name: str
    build: Callable[[], tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]]
    loss_fn: Callable[[nn.Module, Any], torch.Tensor]
    block: int
    rounds: int
    target: float


def mlp() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(64 * 200 + 20, 14)
    loader = DataLoader(Rows(x, x[:, :4].argmax(1)), batch_size=64, shuffle=True, collate_fn=lambda rows: rows)
    return model, torch.optim.Adam(model.parameters(), 1e-3), loader


def mlp_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def gpt() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = Transformer()
    tokens = torch.randint(256, (8 * 40, 129))
    loader = DataLoader(Rows(tokens), batch_size=8, shuffle=True, collate_fn=lambda rows: rows)
    return model, torch.optim.AdamW(model.parameters(), 3e-4), loader


def gpt_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    tokens = batch[0]
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


SETUPS = {
    "mlp": Setup("MLP 14-100-40-4, B = 64, Adam", mlp, mlp_loss, block=200, rounds=120, target=1.06),
    "gpt": Setup("GPT 10.7M, 8 x 128 tokens, AdamW", gpt, gpt_loss, block=2, rounds=24, target=1.03),
}


# --------------------------------------------------------------------------- arms: loops that pause after every block


def plain(setup: Setup, folder: Path) -> Iterator[None]:
    model, optimizer, loader = setup.build()
    step = 0
    while True:
        for batch in loader:
            loss = setup.loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % setup.block == 0:
                yield


def recorded(setup: Setup, folder: Path) -> Iterator[None]:
    model, optimizer, loader = setup.build()
    step = 0
    with whyspike.watch(model, optimizer, loss_fn=setup.loss_fn, path=folder / "run") as rec:
        while True:
            for batch in rec.batches(loader):
                loss = setup.loss_fn(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                step += 1
                if step % setup.block == 0:
                    yield


@dataclass
class Result:
    """The ratios of one arm to the plain loop."""

    arm: str
    ratios: np.ndarray
    step_us: float

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    @property
    def upper(self) -> float:
        """95 % upper bound of the median, by 4,000 bootstrap resamples of the rounds."""
        rng = np.random.default_rng(0)
        draws = rng.choice(self.ratios, (4000, len(self.ratios)))
        return float(np.quantile(np.median(draws, axis=1), 0.95))


def compare(
    setup: Setup, arms: dict[str, Callable[[Setup, Path], Iterator[None]]], rounds: int, seed: int = 0
) -> list[Result]:
    """Run the arms in turns. The arm "off" is the reference."""
    order = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        loops = {name: make(setup, Path(scratch) / name) for name, make in arms.items()}
        for name, loop in loops.items():
            (Path(scratch) / name).mkdir()
            next(loop)  # warm-up: imports, allocation, the first snapshots
        times: dict[str, list[float]] = {name: [] for name in arms}
        gc.collect()
        for _ in range(rounds):
            names = list(arms)
            order.shuffle(names)
            for name in names:
                start = time.perf_counter()
                next(loops[name])
                times[name].append((time.perf_counter() - start) / setup.block)
        for loop in loops.values():
            loop.close()  # type: ignore[attr-defined]
    off = np.array(times["off"])
    return [Result(n, np.array(t) / off, float(np.median(t)) * 1e6) for n, t in times.items() if n != "off"] + [
        Result("off", np.ones(2), float(np.median(off)) * 1e6)
    ]


# --------------------------------------------------------------------------- disk and memory


def disk_and_memory(steps: int = 6000) -> dict[str, float]:
    """Bytes per 1,000 steps of the MLP: on disk without capsules, and of memory once the buffers are warm."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        loop = recorded(SETUPS["mlp"], folder)
        blocks = steps // SETUPS["mlp"].block
        for _ in range(blocks // 3):
            next(loop)
        gc.collect()
        tracemalloc.start()
        for _ in range(blocks // 6):
            next(loop)
        gc.collect()
        rss, traced = _rss(), tracemalloc.get_traced_memory()[0]
        size = (folder / "run" / "record.frames").stat().st_size
        measured = blocks - blocks // 3 - blocks // 6
        for _ in range(measured):
            next(loop)
        gc.collect()
        per_1000 = 1000 / (measured * SETUPS["mlp"].block)
        grown = {
            "memory_mb": (_rss() - rss) * per_1000 / 1e6,
            "python_mb": (tracemalloc.get_traced_memory()[0] - traced) * per_1000 / 1e6,
            "disk_mb": ((folder / "run" / "record.frames").stat().st_size - size) * per_1000 / 1e6,
            "capsules_mb": sum(p.stat().st_size for p in (folder / "run").glob("capsules/*")) / 1e6,
        }
        tracemalloc.stop()
        loop.close()  # type: ignore[attr-defined]
    return grown


def _rss() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
