"""What it costs to hold the latest batches: as they are, or as copies in memory that was set aside.

    python benchmarks/holding.py --write          # a quarter of an hour
    python benchmarks/holding.py --only 128

As benchmarks/overhead.py: every arm is a process of its own, the arms take turns, and the plain loop is there twice. An
arm besides holds the latest 256 batches, in a deque or in a BatchRing, and does nothing else. LEAST_BYTES
and MOST_BYTES of src/whyspike/batchring.py are to be chosen by it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import overhead
import torch
from overhead import Rows, Setup, compare, plain
from torch import nn
from torch.utils.data import DataLoader

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks" / "holding.md"
KILOBYTES = (4, 16, 64, 128, 256, 1024)  # of a batch
BATCH, WIDTH, CLASSES, STEPS = 128, 512, 10, 100
HELD = 256


def training(kilobytes: int) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    inputs = kilobytes * 1024 // 4 // BATCH
    net = nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )
    x, y = torch.randn(BATCH * STEPS, inputs), torch.randint(CLASSES, (BATCH * STEPS,))
    loader = DataLoader(Rows(x, y), batch_size=BATCH, shuffle=True, collate_fn=overhead._same)
    return net, torch.optim.Adam(net.parameters(), 1e-3), loader


def setup(kilobytes: int) -> Setup:
    return Setup(
        f"batches of {kilobytes} KB",
        lambda: training(kilobytes),
        overhead.mlp_loss,
        block=20,
        warm_up=30,
        pairs=25,
        starts=4,
        target=1.0,
        run_target=1.0,
    )


def holding(keep: Callable[[Any, int], object]) -> Callable[[Setup, Path], Iterator[None]]:
    def loop(setup: Setup, folder: Path) -> Iterator[None]:
        model, optimizer, loader = setup.build()
        step = 0
        while True:
            for batch in loader:
                keep(batch, step)
                step += 1
                loss = setup.loss_fn(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield

    return loop


def as_it_is(setup: Setup, folder: Path) -> Iterator[None]:
    held: deque[Any] = deque(maxlen=HELD)
    return holding(lambda batch, step: held.append(batch))(setup, folder)


def copied(setup: Setup, folder: Path) -> Iterator[None]:
    from whyspike.batchring import BatchRing

    ring: list[BatchRing] = []

    def keep(batch: Any, step: int) -> object:
        if not ring:
            ring.append(BatchRing(batch, lambda: HELD))
        return ring[0].keep(batch, step)

    return holding(keep)(setup, folder)


ARMS = {"off": plain, "control": plain, "as it is": as_it_is, "copied": copied}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, choices=KILOBYTES, help="kilobytes of a batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--serve", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        overhead.ARMS.update(ARMS)
        overhead.serve(options.serve, setup(options.only), options.threads)
        return
    lines = [
        "# What it costs to hold the latest batches",
        "",
        f"`python benchmarks/holding.py --write` on {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{options.threads} thread(s): the step time of a plain loop that besides holds the latest {HELD} batches, as "
        "they are or as copies in a `BatchRing`, over that of the plain loop in the same round. The control is the "
        "plain loop once more.",
        "",
        "| batch, KB | step, ms | control | held as it is | 95 % upper | copied | 95 % upper |",
        "|---|---|---|---|---|---|---|",
    ]
    for kilobytes in [options.only] if options.only else KILOBYTES:
        found = compare(
            str(kilobytes), list(ARMS), sys.executable, options.threads, None, setup=setup(kilobytes), script=__file__
        )
        off, control, held, copy = found
        lines.append(
            f"| {kilobytes} | {off.step_us / 1e3:.1f} | {np.median(control.ratios):.3f} "
            f"| {np.median(held.ratios):.3f} | {held.bound():.3f} | {np.median(copy.ratios):.3f} | {copy.bound():.3f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
