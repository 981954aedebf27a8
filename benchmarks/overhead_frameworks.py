"""What recording costs inside a trainer: the step time with the recorder over that of the framework alone.

    python benchmarks/overhead_frameworks.py --write         # three to four minutes for each framework
    python benchmarks/overhead_frameworks.py --only keras

As benchmarks/overhead.py: every arm is a process of its own which trains the same network, here in the framework's own
loop, and pauses after every block of steps; the arms take turns. It pauses where the loader draws its next batch, which
all frameworks do alike. The step takes 5 to 10 ms on one core. Needs the extras `lightning`, `huggingface`, `keras`,
and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("KERAS_BACKEND", "torch")  # before anybody imports keras

import numpy as np
import torch
from _trainers import FRAMEWORKS, Parts
from overhead import STILL, Clock, Result, Rows, Setup, compare
from torch import nn
from torch.utils.data import DataLoader, Sampler

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks" / "overhead_frameworks.md"
INPUTS, WIDTH, CLASSES, BATCH, STEPS = 256, 640, 10, 128, 100
NAME = f"MLP {INPUTS}-{WIDTH}-{WIDTH}-{CLASSES}, B = {BATCH}, Adam"
TARGET = 1.04  # of the 95 % upper bound, for a step of at least LEAST
LEAST = 5e-3
# Where a process's memory happens to lie is worth up to five percent here: many starts, and few rounds of each. The
# warm-up lasts until as many batches are held as will be; until then memory is asked for, which is paid once.
SETUP = Setup(NAME, None, None, block=20, warm_up=60, pairs=14, starts=6, target=TARGET, run_target=TARGET)  # type: ignore[arg-type]
PACKAGES = {"torch": "torch", "lightning": "lightning", "huggingface": "transformers", "accelerate": "accelerate"}
ARMS = ("off", "control", "whyspike")


class Pausing(Sampler[list[int]]):
    """Batches in a new order every epoch; after every block it answers how long that took, and waits for a line."""

    def __init__(self, n: int, answers: TextIO, clock: Clock) -> None:
        self.n, self.answers, self.clock, self.draw = n, answers, clock, torch.Generator().manual_seed(0)
        self.drawn, self.began = 0, 0.0

    def __len__(self) -> int:
        return self.n // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        rows = torch.randperm(self.n, generator=self.draw).tolist()
        for k in range(len(self)):
            if self.drawn % SETUP.block == 0:
                self.pause(self.drawn // SETUP.block - SETUP.warm_up)
            self.drawn += 1
            yield rows[k * BATCH : (k + 1) * BATCH]

    def pause(self, block: int) -> None:
        if block < 0:
            return
        took = (time.perf_counter() - self.began) / SETUP.block
        if block == 0:
            gc.collect()
        print("ready" if block == 0 else took, file=self.answers, flush=True)
        if not self.clock.wait(sys.stdin):
            os._exit(0)  # out of the framework's loop, whatever it does with an error
        self.began = time.perf_counter()


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def in_keras(optimizer: Any) -> Any:
    import keras  # pyright: ignore[reportMissingImports]

    dense = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input((INPUTS,)), dense(WIDTH, activation="relu"), dense(WIDTH, activation="relu"), dense(CLASSES)]
    )
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _same(rows: Any) -> Any:
    return rows


def parts(answers: TextIO, clock: Clock) -> Parts:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )
    x = torch.randn(BATCH * STEPS, INPUTS)
    y = x[:, :CLASSES].argmax(1)
    return Parts(
        net=net,
        optimizer=torch.optim.Adam(net.parameters(), 1e-3),
        loss_fn=cross_entropy,
        loader=DataLoader(Rows(x, y), batch_sampler=Pausing(len(x), answers, clock), collate_fn=_same),
        epochs=10**6,
        seed=0,
        own_order=True,
        keras=in_keras,
    )


def serve(arm: str, framework: str, threads: int) -> None:
    """Train until standard input ends; a block whenever a line comes in."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    clock = Clock()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a framework prints goes elsewhere
    FRAMEWORKS[framework](parts(answers, clock), Path.cwd() / "run" if arm == "whyspike" else None, False)


def page(found: dict[str, list[Result]], threads: int) -> str:
    versions = {f: importlib.metadata.version(PACKAGES.get(f, f)) for f in found}
    lines = [
        "# What recording costs inside a trainer",
        "",
        f"`python benchmarks/overhead_frameworks.py --write` on {os.cpu_count()} cores, "
        f"{platform.python_implementation()} {platform.python_version()}, torch {torch.__version__}, {threads} "
        f"thread(s). {NAME}: every arm is a process of its own in the framework's own loop; they take turns, a block "
        f"of {SETUP.block} steps each, and each block is compared with that of the framework alone in the same round. "
        "The control is the framework alone once more. "
        f"All arms keep the memory that they free ({STILL}). Measured from step {SETUP.warm_up * SETUP.block} on.",
        "",
        "| | step alone, ms | rounds | control: median | recorder: median | 95 % upper bound | of all time | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for framework, results in found.items():
        by_arm = {r.arm: r for r in results}
        ours, off, control = by_arm["whyspike"], by_arm["off"], by_arm["control"]
        if ours.failed or off.failed:
            lines.append(f"| {framework} {versions[framework]} | | | | failed: {ours.failed or off.failed} | | | |")
            continue
        met = "met" if ours.bound() <= TARGET else "missed"
        short = "" if off.step_us * 1e-6 >= LEAST else f"; the step is below {LEAST * 1e3:.0f} ms"
        lines.append(
            f"| {framework} {versions[framework]} | {off.step_us / 1e3:.1f} | {len(off.ratios)} "
            f"| {np.median(control.ratios):.3f} | {np.median(ours.ratios):.3f} | {ours.bound():.3f} "
            f"| {ours.overall:.3f} | {met}{short} |"
        )
    quiet = (
        "A control that is not within .01 of 1 says that the machine was not quiet, and that the ratios beside it are "
        "no better than that."
    )
    return "\n".join([*lines, "", f"Target: upper bound {TARGET}. {quiet}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(FRAMEWORKS))
    parser.add_argument("--pairs", type=int, help="rounds per start")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--serve", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.only, options.threads)
        return
    chosen = [options.only] if options.only else list(FRAMEWORKS)
    found = {
        f: compare(f, list(ARMS), sys.executable, options.threads, options.pairs, setup=SETUP, script=__file__)
        for f in chosen
    }
    text = page(found, options.threads)
    print(text)
    if options.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
