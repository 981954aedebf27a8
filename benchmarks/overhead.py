"""What recording costs: the step time with the recorder over the step time without it.

    python benchmarks/overhead.py                # whyspike, on an MLP and a GPT
    python benchmarks/overhead.py --peers        # and four peers, from a scratch environment, in the same run
    python benchmarks/overhead.py --only mlp --pairs 40
    python benchmarks/overhead.py --run --write          # `whyspike run` alone; a quarter of an hour

Every arm is a process of its own which trains the same network in its own loop and pauses after every block of steps.
The arms take turns, in an order drawn afresh for every round; a round gives one ratio per arm to the plain loop of the
same round. Reported are the median ratio with its 95 % upper bootstrap bound, which is what ordinary steps pay, and the
ratio of all the time, in which there is also what happens seldom: a capsule, a second's frames on the disk. The plain
loop runs twice: the second is the control, which shows what the machine alone makes of a ratio. Where a process's
memory happens to lie is worth about a percent, so all arms are started afresh several times.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
# glibc gives freed memory back to the system and takes it again, in one arm and not in the other, by where it lies:
# what is then measured is that, and no recorder. Other allocators ignore this.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
STILL = ", ".join(f"{k}={v}" for k, v in KEEPING.items())
PEERS = {
    "trainscope": "trainscope==1.8.1",
    "stabilityguard": "stabilityguard==0.3.0",
    "trainpulse": "trainpulse==0.4.0",
    "wandb.watch": "wandb",
}


# --------------------------------------------------------------------------- two trainings


class Rows(Dataset[Any]):
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
    """A training to measure: what builds it, how many steps a block has, and when the measuring begins."""

    name: str
    build: Callable[[], tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]]
    loss_fn: Callable[[nn.Module, Any], torch.Tensor]
    block: int
    warm_up: int  # blocks before the measuring: allocation, the strides finding their place, the first capsules
    pairs: int
    starts: int
    target: float
    run_target: float  # of `whyspike run`


def mlp() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(64 * 200 + 20, 14)
    y = torch.where(torch.rand(len(x)) < 0.1, torch.randint(4, (len(x),)), x[:, :4].argmax(1))
    loader = DataLoader(Rows(x, y), batch_size=64, shuffle=True, collate_fn=_same)
    return model, torch.optim.Adam(model.parameters(), 1e-3), loader


def mlp_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def gpt() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = Transformer()
    loader = DataLoader(Rows(torch.randint(256, (8 * 40, 129))), batch_size=8, shuffle=True, collate_fn=_same)
    return model, torch.optim.AdamW(model.parameters(), 3e-4), loader


def gpt_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    tokens = batch[0]
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def _same(rows: Any) -> Any:
    return rows


SETUPS = {
    "mlp": Setup(
        "MLP 14-100-40-4, B = 64, Adam", mlp, mlp_loss, 200, 30, pairs=40, starts=5, target=1.06, run_target=1.1
    ),
    "gpt": Setup(
        "GPT 10.9M, 8 x 128 tokens, AdamW", gpt, gpt_loss, 2, 24, pairs=25, starts=4, target=1.03, run_target=1.03
    ),
}


# --------------------------------------------------------------------------- arms: loops that pause after every step


def plain(setup: Setup, folder: Path) -> Iterator[None]:
    """The loop as anyone writes it."""
    model, optimizer, loader = setup.build()
    while True:
        for batch in loader:
            loss = setup.loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def recorded(setup: Setup, folder: Path) -> Iterator[None]:
    """The same with everything on: loss_fn and so the probe, capsules, batches."""
    import whyspike

    model, optimizer, loader = setup.build()
    with whyspike.watch(model, optimizer, loss_fn=setup.loss_fn, path=folder / "run") as rec:
        while True:
            for batch in rec.batches(loader):
                loss = setup.loss_fn(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                yield


def unchanged(setup: Setup, folder: Path) -> Iterator[None]:
    """The loop as anyone writes it, under the global hooks of `whyspike run`."""
    from whyspike.hooks import Hooks
    from whyspike.scriptwatch import ScriptWatch

    Hooks(ScriptWatch(lambda number: folder / f"run-{number}", name=setup.name.split()[0]))
    yield from plain(setup, folder)


# --------------------------------------------------------------------------- peers, with the defaults of their READMEs


def trainscope(setup: Setup, folder: Path) -> Iterator[None]:
    """Per-layer statistics every step."""
    from trainscope import TrainScope  # type: ignore[import-not-found]
    from trainscope.core.config import TrainScopeConfig  # type: ignore[import-not-found]

    model, optimizer, loader = setup.build()
    scope = TrainScope(model, optimizer, config=TrainScopeConfig()).attach()
    step = 0
    while True:
        for batch in loader:
            optimizer.zero_grad()
            loss = setup.loss_fn(model, batch)
            loss.backward()
            scope.step(loss.item(), batch_index=step)
            optimizer.step()
            step += 1
            yield


def stabilityguard(setup: Setup, folder: Path) -> Iterator[None]:
    """An optimizer that looks at the gradient norm before every update."""
    from stabilityguard import GuardedOptimizer  # type: ignore[import-not-found]

    model, optimizer, loader = setup.build()
    guarded = GuardedOptimizer(optimizer, model, spike_threshold=10.0, nan_action="skip", log_every=50)
    while True:
        for batch in loader:
            loss = setup.loss_fn(model, batch)
            guarded.zero_grad()
            loss.backward()
            guarded.step()
            yield


def trainpulse(setup: Setup, folder: Path) -> Iterator[None]:
    """The loss alone, as in its quick start."""
    from trainpulse import Monitor  # type: ignore[import-not-found]

    model, optimizer, loader = setup.build()
    monitor = Monitor()
    step = 0
    while True:
        for batch in loader:
            loss = setup.loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log("loss", step, loss.item())
            step += 1
            yield


def wandb_watch(setup: Setup, folder: Path) -> Iterator[None]:
    """Offline: histograms of gradients every 100 steps, and the loss every step."""
    import wandb  # type: ignore[import-not-found]

    model, optimizer, loader = setup.build()
    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(console="off", silent=True))
    run.watch(model, log="gradients", log_freq=100)
    while True:
        for batch in loader:
            loss = setup.loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log({"loss": loss.item()})
            yield


ARMS: dict[str, Callable[[Setup, Path], Iterator[None]]] = {
    "off": plain,
    "control": plain,
    "whyspike": recorded,
    "whyspike run": unchanged,
    "trainscope": trainscope,
    "stabilityguard": stabilityguard,
    "trainpulse": trainpulse,
    "wandb.watch": wandb_watch,
}


# --------------------------------------------------------------------------- one process per arm


class Clock:
    """A clock that stands still while an arm waits for its turn.

    A recorder writes once a second and spends a share of the time that has passed. To an arm that waits five sixths of
    the time, all of that would come six times as often as to a training. Install it before the recorder is imported.
    """

    def __init__(self) -> None:
        assert "whyspike.record" not in sys.modules
        self._real, self._waited = time.monotonic, 0.0
        time.monotonic = self._now

    def _now(self) -> float:
        return self._real() - self._waited

    def wait(self, lines: TextIO) -> str:
        """The next line, or nothing at the end."""
        began = self._real()
        line = lines.readline()
        self._waited += self._real() - began
        return line


def serve(arm: str, setup: Setup, threads: int) -> None:
    """Run a block whenever a line comes in on stdin, and answer with its seconds per step."""
    torch.set_num_threads(threads)
    clock = Clock()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints goes elsewhere
    loop = ARMS[arm](setup, Path.cwd())
    for _ in range(setup.block * setup.warm_up):
        next(loop)
    gc.collect()
    print("ready", file=answers, flush=True)
    while clock.wait(sys.stdin):
        start = time.perf_counter()
        for _ in range(setup.block):
            next(loop)
        print((time.perf_counter() - start) / setup.block, file=answers, flush=True)


class Arm:
    """A process that serves blocks, of this script or of another one."""

    def __init__(self, name: str, key: str, python: str, threads: int, script: str = __file__) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        command = [python, os.path.abspath(script), "--serve", name, "--only", key, "--threads", str(threads)]
        env = {
            **os.environ,
            **KEEPING,
            "HOME": self._folder.name,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self._errors = open(Path(self._folder.name) / "stderr", "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=self._folder.name,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def ready(self) -> str | None:
        """Wait for the warm-up; returns why it failed, if it did."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() == "ready":
            return None
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def block(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._errors.close()
        self._folder.cleanup()


@dataclass
class Result:
    """The ratios of one arm to the plain loop."""

    arm: str
    ratios: np.ndarray
    step_us: float
    failed: str | None = None
    overall: float = math.nan  # its time over that of the plain loop, all rounds together

    def bound(self) -> float:
        """95 % upper bound of the median, by 4,000 bootstrap resamples of the rounds."""
        draws = np.random.default_rng(0).choice(self.ratios, (4000, len(self.ratios)))
        return float(np.quantile(np.median(draws, axis=1), 0.95))


def compare(
    key: str,
    names: list[str],
    peer_python: str,
    threads: int,
    pairs: int | None,
    *,
    starts: int | None = None,
    setup: Setup | None = None,
    script: str = __file__,
) -> list[Result]:
    """Run the arms in turns; the arm "off" is the reference."""
    setup, order = setup or SETUPS[key], random.Random(0)
    times: dict[str, list[list[float]]] = {}
    failed: dict[str, str] = {}
    starts = starts or setup.starts
    for start in range(starts):
        arms: list[Arm] = []
        for name in names:  # one after another, so that a warm-up does not disturb another one
            if name in failed:
                continue
            arm = Arm(name, key, peer_python if name in PEERS else sys.executable, threads, script)
            reason = arm.ready()
            if reason is None:
                arms.append(arm)
            else:
                failed[name] = reason
                arm.stop()
        for _ in range(pairs or setup.pairs):
            order.shuffle(arms)
            row = {arm.name: arm.block() for arm in arms}
            for name, seconds in row.items():
                times.setdefault(name, []).append([seconds, seconds / row["off"]])
        for arm in arms:
            arm.stop()
        print(f"{key}: start {start + 1} of {starts} done", file=sys.stderr)
    whole = sum(seconds for seconds, _ in times["off"])
    found = [
        Result(
            name,
            np.array(t)[:, 1],
            float(np.median(np.array(t)[:, 0])) * 1e6,
            overall=sum(seconds for seconds, _ in t) / whole,
        )
        for name, t in times.items()
    ]
    found.sort(key=lambda r: names.index(r.arm))
    return found + [Result(n, np.array([]), 0.0, why) for n, why in failed.items()]


def peer_environment(folder: Path) -> tuple[str, dict[str, str]]:
    """A scratch environment that sees this one's packages and adds the peers; returns its python, and what failed."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "project.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    failed = {}
    for name, wanted in PEERS.items():
        done = subprocess.run([python, "-m", "pip", "install", "-q", wanted], capture_output=True, text=True)
        if done.returncode:
            failed[name] = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    return python, failed


# --------------------------------------------------------------------------- disk and memory


def disk_and_memory(steps: int = 6000) -> dict[str, float]:
    """What 1,000 steps of the MLP add, once the buffers are warm: megabytes on disk and in memory."""
    gc.collect()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        loop = recorded(SETUPS["mlp"], folder)
        for _ in range(steps // 2):
            next(loop)
        tracemalloc.start()
        for _ in range(steps // 6):
            next(loop)
        time.sleep(1.1)  # the next flush comes at the next steps
        for _ in range(128):
            next(loop)
        gc.collect()
        file = folder / "run" / "record.frames"
        rss, traced, size = _rss(), tracemalloc.get_traced_memory()[0], file.stat().st_size
        for _ in range(steps):
            next(loop)
        time.sleep(1.1)
        for _ in range(128):
            next(loop)
        gc.collect()
        per_1000 = 1000 / (steps + 128) / 1e6
        grown = {
            "disk": (file.stat().st_size - size) * per_1000,
            "resident memory": (_rss() - rss) * per_1000,
            "Python objects": (tracemalloc.get_traced_memory()[0] - traced) * per_1000,
        }
        grown["capsules of the whole run"] = sum(p.stat().st_size for p in (folder / "run").glob("capsules/*")) / 1e6
        tracemalloc.stop()
        loop.close()  # type: ignore[attr-defined]
    return grown


def _rss() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --------------------------------------------------------------------------- the report


def table(key: str, results: list[Result]) -> str:
    setup = SETUPS[key]
    off = next(r for r in results if r.arm == "off")
    lines = [
        f"### {setup.name}",
        "",
        f"Step without a recorder: {off.step_us:,.0f} µs (median); {len(off.ratios)} rounds of {setup.block} steps.",
        "",
        "| | median step ratio | 95 % upper bound | of all the time |",
        "|---|---|---|---|",
    ]
    for r in results:
        if r.arm == "off":
            continue
        name = "control: no recorder either" if r.arm == "control" else r.arm
        row = (
            f"failed: {r.failed} | | " if r.failed else f"{np.median(r.ratios):.3f} | {r.bound():.3f} | {r.overall:.3f}"
        )
        lines.append(f"| {name} | {row} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETUPS))
    parser.add_argument("--peers", action="store_true", help="also run the peers, in a scratch environment")
    parser.add_argument("--pairs", type=int, help="rounds per start")
    parser.add_argument("--starts", type=int, help="times that all arms are started afresh")
    parser.add_argument("--run", action="store_true", help="`whyspike run` alone, beside the control")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", action="store_true", help="write overhead.md; with --run overhead_run.md")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, SETUPS[options.only], options.threads)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        python, broken = sys.executable, {}
        names = ["off", "control", *(() if options.run else ("whyspike",)), "whyspike run"]
        if options.peers:
            python, broken = peer_environment(Path(scratch) / "peers")
            names += [n for n in PEERS if n not in broken]
        keys = [options.only] if options.only else list(SETUPS)
        results = {
            key: compare(key, names, python, options.threads, options.pairs, starts=options.starts) for key in keys
        }
    parts = [
        table(key, r + [Result(n, np.array([]), 0.0, why) for n, why in broken.items()]) for key, r in results.items()
    ]
    if not options.run:
        grown = disk_and_memory()
        parts.append(
            "### Per 1,000 steps of the MLP\n\n| | MB |\n|---|---|\n"
            + "\n".join(f"| {k} | {v:.3f} |" for k, v in grown.items())
        )
    missed = [
        f"{arm} ({key})"
        for key, found in results.items()
        for arm, target in (("whyspike", SETUPS[key].target), ("whyspike run", SETUPS[key].run_target))
        if any(x.arm == arm and x.bound() > target for x in found)
    ]
    parts.append(
        "Targets: upper bound "
        + ", ".join(f"{SETUPS[k].target} ({k}; under `whyspike run` {SETUPS[k].run_target})" for k in results)
        + (". " if options.run else "; 0.5 MB on disk and 0.3 MB of memory per 1,000 steps. ")
        + (f"Missed: {', '.join(missed)}." if missed else "The step ratios are met.")
    )
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        command = "python benchmarks/overhead.py " + " ".join(a for a in sys.argv[1:] if a.startswith("--"))
        head = (
            f"# What {'`whyspike run`' if options.run else 'recording'} costs\n\n"
            f"Written by `{command.strip()}` on {os.cpu_count()} cores, {platform.python_implementation()} "
            f"{platform.python_version()}, torch {torch.__version__}, {options.threads} thread(s). Every arm is a "
            "process of its own; they take turns, a block of steps each, and each block is compared with the plain "
            "loop's block of the same round. Capsules, probe and stored batches are on. A peer runs with the defaults "
            f"of its README. All arms keep the memory that they free ({STILL}).\n"
        )
        DOCS.mkdir(parents=True, exist_ok=True)
        page = DOCS / ("overhead_run.md" if options.run else "overhead.md")
        page.write_text(head + "\n" + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
