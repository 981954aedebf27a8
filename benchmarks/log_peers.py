"""Seven trainings, written to CSV and TensorBoard and given to every tool that reads logs, in the same run.

    python benchmarks/log_peers.py            # prints the page
    python benchmarks/log_peers.py --write    # and writes docs/benchmarks/log_peers.md

The trainings are those of a to f below: four sick ones, two healthy ones, one with a saw's teeth and nothing wrong.
Every log holds step, epoch and the loss of each step, the learning rate in the CSV files; nothing else is said to any
tool. The peers are installed into a scratch environment and run with the defaults of their READMEs.

The rule of the score, for every tool alike: a finding is what the tool lists first (for whyspike, its answer and what
it says beside it as likely or confirmed). A truth counts when the first finding holds one of the words that TRUTHS has
for the training. A false statement is a cause out of CAUSES, named in any finding, that the training does not have; a
healthy training has none, so that there each finding that is more than "fine" or a note is one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
OUT = ROOT / "docs" / "benchmarks" / "log_peers.md"
PEERS = {"runmedic": "runmedic==0.1.1", "trainspotter": "trainspotter[tensorboard]==0.2.6"}
SEED = 4242

# --------------------------------------------------------------------------- the trainings


@dataclass
class Log:
    """What a training leaves: the loss of every step, and where its epochs begin."""

    loss: list[float] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    lr: float = 0.0


def mlp(width: int = 14, out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, out))


def classes(n: int, seed: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 14, generator=draw)
    y = torch.tanh(x @ torch.randn(14, 4, generator=draw)).argmax(1)
    return x, torch.where(torch.rand(n, generator=draw) < noise, torch.randint(4, (n,), generator=draw), y)


def passes(n: int, size: int, epochs: int, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for rows in torch.randperm(n, generator=draw).split(size):
            yield epoch, rows


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[int, torch.Tensor]],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
) -> Log:
    found = Log(lr=optimizer.param_groups[0]["lr"])
    for epoch, rows in batches:
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.loss.append(float(loss.detach()))
        found.epoch.append(epoch)
    return found


def divided_twice() -> Log:
    torch.manual_seed(SEED)
    x, y = classes(1030, SEED)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    each = lambda rows: F.cross_entropy(model(x[rows]), y[rows]) / len(rows)  # noqa: E731
    return train(model, optimizer, passes(1030, 64, 60, SEED), each)


def one_sample() -> Log:
    torch.manual_seed(SEED)
    x, y = classes(5440, SEED, noise=0.0)
    target = F.one_hot(y, 4).float()
    target[777] *= 1000
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return train(model, optimizer, passes(5440, 32, 6, SEED), lambda rows: F.mse_loss(model(x[rows]), target[rows]))


def full_batch_adam() -> Log:
    from whyspike.cases._tabular import training

    made = training(SEED % 1000, lr=1e-2, batch_size=None, steps=3000, task="regression", noise=0.05)
    x, y = next(iter(made.loader))
    whole = ((k, torch.arange(len(x))) for k in range(3000))
    return train(made.model, made.optimizer, whole, lambda rows: made.loss_fn(made.model, (x, y)))


def log_of_softmax() -> Log:
    torch.manual_seed(SEED)
    x, y = classes(4000, SEED, noise=0.0)
    x[800:] *= 40  # from step 20 on the inputs come in another unit
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def by_hand(rows: torch.Tensor) -> torch.Tensor:
        p = F.softmax(model(x[rows]), 1)
        return -torch.log(p[torch.arange(len(rows)), y[rows]]).mean()

    in_order = ((0, rows) for rows in torch.arange(4000).split(40))
    return train(model, optimizer, in_order, by_hand)


def healthy(size: int, steps: int, *, heavy: bool) -> Log:
    torch.manual_seed(SEED + size)
    draw = torch.Generator().manual_seed(SEED + size)
    n = steps * size // 5
    x = torch.randn(n, 14, generator=draw)
    y = torch.tanh(x @ torch.randn(14, 1, generator=draw))
    tail = torch.distributions.StudentT(3.0)
    torch.manual_seed(SEED + size + 1)
    y += (0.3 * tail.sample((n, 1))) if heavy else 0.3 * torch.randn(n, 1, generator=draw)
    model = mlp(out=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return train(model, optimizer, passes(n, size, 5, SEED), lambda rows: F.mse_loss(model(x[rows]), y[rows]))


def recommender() -> Log:
    from whyspike.cases.gru_recommender import training

    made = training(SEED % 1000, n=40 * 64, epochs=20)
    found = Log(lr=0.01)
    for epoch in range(made.epochs):
        for batch in made.loader:
            loss = made.loss_fn(made.model, batch)
            made.optimizer.zero_grad()
            loss.backward()
            made.optimizer.step()
            found.loss.append(float(loss.detach()))
            found.epoch.append(epoch)
    return found


TRAININGS: dict[str, tuple[str, Callable[[], Log]]] = {
    "a": ("last batch 6 of 64, loss divided twice, SGD with momentum", divided_twice),
    "b": ("the target of one sample times 1,000", one_sample),
    "c": ("Adam, lr .01, full batch", full_batch_adam),
    "d": ("softmax, then log", log_of_softmax),
    "e": ("healthy, batches of 16", lambda: healthy(16, 2000, heavy=False)),
    "e2": ("healthy, batches of 4, heavy tail", lambda: healthy(4, 2000, heavy=True)),
    "f": ("GRU recommender: a sawtooth, no spike", recommender),
}
HEALTHY = ("e", "e2")
TRUTHS = {
    "a": r"double-averaged|divided (by the batch size )?twice|last batch|once (an|per|every) epoch|every 17 steps",
    "b": r"outlier|single sample|bad sample|one sample|mislabel|corrupt",
    "c": r"adaptive-eos|edge of stability|too large for the curvature|sharpness",
    "d": r"unstable-cross-entropy|log\(0\)|log of (zero|0)|logits|logarithm of",
    "e": r"healthy|nothing is wrong|no (problem|issue|finding)s?|looks? (fine|good|ok|healthy)",
    "e2": r"healthy|nothing is wrong|no (problem|issue|finding)s?|looks? (fine|good|ok|healthy)",
    "f": r"sawtooth|order of the data|reshuffl|forget|without replacement",
}
# Causes as tools name them. A training has those whose letters stand beside it.
CAUSES: dict[str, tuple[str, str]] = {
    "learning rate too high": (
        r"lr-too-high|(learning rate|\blr\b)[^.\n]{0,30}too (high|large)|(lower|reduce) (the )?(learning rate|lr)",
        "c",
    ),
    "exploding gradients": (r"explod", ""),
    "vanishing gradients": (r"vanish", ""),
    "overfitting": (r"overfit", ""),
    "bad data": (r"outlier|bad (batch|sample|data)|corrupt|mislabel|nan[^.\n]{0,20}data", "b"),
    "last batch or loss divided twice": (r"double-averaged|divided twice|small-last-batch|last batch", "a"),
    "unstable cross-entropy": (r"unstable-cross-entropy|log\(0\)|log of (zero|0)", "d"),
    "too low precision": (r"fp16|mixed precision|overflow", ""),
    "memorization": (r"memori[sz]", ""),
    "order of the data": (r"epochal-sawtooth|fixed-order|length-grouped|shuffle-buffer|not shuffled|shuffling", "f"),
    "divergence": (r"diverg", ""),
    "plateau": (r"plateau|stalled|stopped improving|dead (run|training)", ""),
}

# --------------------------------------------------------------------------- the tools


def write(found: Log, folder: Path, name: str) -> dict[str, Path]:
    table = folder / f"{name}.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("step", "epoch", "loss", "lr"))
        rows.writerows((k, e, v, found.lr) for k, (e, v) in enumerate(zip(found.epoch, found.loss, strict=True)))
    from torch.utils.tensorboard import SummaryWriter

    events = folder / f"{name}-events"
    with SummaryWriter(str(events)) as writer:
        for k, (e, v) in enumerate(zip(found.epoch, found.loss, strict=True)):
            writer.add_scalar("train/loss", v, k)
            writer.add_scalar("epoch", e, k)
    return {"CSV": table, "TensorBoard": events}


@dataclass(frozen=True)
class Said:
    """What a tool said of a log."""

    first: str
    rest: str
    seconds: float
    quiet: bool  # no finding at all

    @property
    def all(self) -> str:
        return f"{self.first}\n{self.rest}"


def run(command: list[str]) -> tuple[str, float]:
    start = time.perf_counter()
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    return done.stdout or done.stderr, time.perf_counter() - start


def whyspike(python: str, path: Path) -> Said:
    said, seconds = run([sys.executable, "-m", "whyspike", "diagnose", str(path), "--format", "json"])
    loaded: Any = json.loads(said)
    made = loaded[0] if isinstance(loaded, list) else loaded
    answer = made["answer"]
    first = f"{answer['status']} {answer.get('cause') or ''}: {answer['sentence']}"
    rest = "\n".join(
        f"{v['cause']}: {v.get('sentence', '')}"
        for v in made["verdicts"]
        if v["outcome"] in ("likely", "confirmed") and v["cause"] != answer.get("cause")
    )
    return Said(first, rest, seconds, answer["status"] == "healthy")


def runmedic(python: str, path: Path) -> Said:
    said, seconds = run([str(Path(python).with_name("runmedic")), "diagnose", str(path), "--json"])
    made = json.loads(said)
    made = made[0] if isinstance(made, list) else made
    found = [json.dumps(f) for f in made["findings"]]
    return Said(found[0] if found else "no findings", "\n".join(found[1:]), seconds, not found)


def trainspotter(python: str, path: Path) -> Said:
    said, seconds = run([str(Path(python).with_name("trainspotter")), "analyze", str(path), "--output", "json"])
    made = json.loads(said)
    found = [json.dumps(f) for f in made["findings"]]
    return Said(found[0] if found else "no findings", "\n".join(found[1:]), seconds, not found)


TOOLS: dict[str, Callable[[str, Path], Said]] = {
    "whyspike": whyspike,
    "runmedic": runmedic,
    "trainspotter": trainspotter,
}


def scratch(folder: Path) -> str:
    """An environment with the peers; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *PEERS.values(), "tensorboard"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description="Seven logs, read by whyspike and by its peers.")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/log_peers.md")
    parser.add_argument("--raw", action="store_true", help="print what every tool said")
    parser.add_argument("--python", help="of an environment that has the peers already")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = asked.python or scratch(folder / "peers")
        truths = dict.fromkeys(TOOLS, 0)
        false = dict.fromkeys(TOOLS, 0)
        alarms = dict.fromkeys(TOOLS, 0)
        seconds = dict.fromkeys(TOOLS, 0.0)
        rows, of = [], 0
        for letter, (words, build) in TRAININGS.items():
            paths = write(build(), folder, letter)
            for kind, path in paths.items():
                of += 1
                row = []
                for tool, ask in TOOLS.items():
                    try:
                        said = ask(python, path)
                    except (ValueError, KeyError, IndexError, subprocess.TimeoutExpired) as error:
                        said = Said(f"it failed: {type(error).__name__}", "", 0.0, quiet=False)
                    if asked.raw:
                        print(f"=== {letter} {kind} {tool} {said.seconds:.1f} s\n{said.all[:1500]}")
                    right = bool(re.search(TRUTHS[letter], said.first, re.IGNORECASE))
                    wrong = [
                        cause
                        for cause, (pattern, has) in CAUSES.items()
                        if letter not in has.split() and re.search(pattern, said.all, re.IGNORECASE)
                    ]
                    truths[tool] += right
                    false[tool] += len(wrong)
                    alarms[tool] += letter in HEALTHY and not right
                    seconds[tool] += said.seconds
                    row.append(f"{'right' if right else '–'}{'; false: ' + ', '.join(wrong) if wrong else ''}")
                rows.append(f"| {letter}: {words} | {kind} | {' | '.join(row)} |")
        page = [
            "# Logs, read by whyspike and by its peers",
            "",
            "Written by `python benchmarks/log_peers.py --write`; its docstring has the rule of the score.",
            "",
            f"| | {' | '.join(TOOLS)} |",
            f"|---|{'---|' * len(TOOLS)}",
            f"| truths in the first finding, of {of} | {' | '.join(str(truths[t]) for t in TOOLS)} |",
            f"| false statements | {' | '.join(str(false[t]) for t in TOOLS)} |",
            f"| healthy logs not called healthy, of {2 * len(HEALTHY)} | {' | '.join(str(alarms[t]) for t in TOOLS)} |",
            f"| seconds, all logs | {' | '.join(f'{seconds[t]:.0f}' for t in TOOLS)} |",
            "",
            f"| training | log | {' | '.join(TOOLS)} |",
            f"|---|---|{'---|' * len(TOOLS)}",
            *rows,
            "",
        ]
        print("\n".join(page))
        if asked.write:
            OUT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
