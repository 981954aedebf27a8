"""Large logs: how long `whyspike diagnose` takes for a million steps, and how much memory.

    python benchmarks/large_logs.py            # prints the page
    python benchmarks/large_logs.py --write    # and writes docs/benchmarks/large_logs.md

A CSV file with step, epoch, loss and learning rate, and a TensorBoard folder with the loss alone, of 250,000 and of
1,000,000 steps, with one spike. Beside it, on the same files in the same run: TensorBoard's own loader (every point:
`size_guidance` 0), and runmedic from a scratch environment. Each is a process of its own; processor time is what it
and its children took (user and system), and is what a machine that does nothing else would show on the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
OUT = ROOT / "docs" / "benchmarks" / "large_logs.md"
PEER = "runmedic==0.1.1"
LOADER = (
    "import sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E; "
    "print(len(E(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0}).Reload().Scalars('train/loss')))"
)
LIMIT_S = 600


@dataclass(frozen=True)
class Took:
    """What a process needed."""

    cpu: float
    wall: float
    megabytes: float
    ok: bool

    def __str__(self) -> str:
        return f"{self.cpu:.1f} s ({self.wall:.1f} s on the clock), {self.megabytes:,.0f} MB" if self.ok else "failed"


def curve(n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    loss = 2 * np.exp(-3 * np.arange(n) / n) + 0.3 + 0.05 * rng.standard_normal(n)
    loss[n // 2] *= 6
    return loss


def write(n: int, folder: Path) -> dict[str, Path]:
    from torch.utils.tensorboard import SummaryWriter

    loss = curve(n)
    table, events = folder / f"{n}.csv", folder / f"{n}-events"
    with table.open("w") as file:
        file.write("step,epoch,loss,lr\n")
        file.writelines(f"{k},{k // 1000},{v:.6f},0.001\n" for k, v in enumerate(loss.tolist()))
    with SummaryWriter(str(events)) as writer:
        for k, v in enumerate(loss.tolist()):
            writer.add_scalar("train/loss", v, k)
    return {"CSV": table, "TensorBoard": events}


def timed(command: list[str]) -> Took:
    """Run a process that measures itself: RUSAGE_CHILDREN of a process in between holds its peak alone."""
    code = (
        "import json, resource, subprocess, sys, time; t = time.perf_counter();"
        "p = subprocess.run(json.loads(sys.argv[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, "
        f"timeout={LIMIT_S});"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(u.ru_utime + u.ru_stime, time.perf_counter() - t, u.ru_maxrss / 1024, int(p.returncode < 2))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(command)], capture_output=True, text=True, env=env)
    if done.returncode:
        return Took(float("nan"), float("nan"), float("nan"), ok=False)
    cpu, wall, megabytes, ok = map(float, done.stdout.split())
    return Took(cpu, wall, megabytes, bool(ok))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/large_logs.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--python", help="of an environment that has runmedic already")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = asked.python
        if python is None:
            subprocess.run([sys.executable, "-m", "venv", str(folder / "peer")], check=True)
            python = str(folder / "peer" / ("Scripts" if os.name == "nt" else "bin") / "python")
            subprocess.run([python, "-m", "pip", "install", "-q", PEER, "tensorboard"], check=True)
        for n in asked.sizes:
            for kind, path in write(n, folder).items():
                ours = timed([sys.executable, "-m", "whyspike", "diagnose", str(path), "--format", "json"])
                loader = timed([sys.executable, "-c", LOADER, str(path)]) if kind == "TensorBoard" else None
                peer = timed([str(Path(python).with_name("runmedic")), "diagnose", str(path), "--json"])
                rows.append(f"| {kind} | {n:,} | {ours} | {loader or ''} | {peer} |")
                print(rows[-1], flush=True)
    page = [
        "# Large logs",
        "",
        "Written by `python benchmarks/large_logs.py --write`; its docstring says what is measured. Processor time, "
        f"the time on the clock (of a machine with a load of {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores), the "
        "largest memory.",
        "",
        "| log | steps | whyspike diagnose | TensorBoard's loader alone | runmedic diagnose |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Asked: a million steps of CSV within 10 s and 1,000 MB; of TensorBoard within 1.3 times its loader and 5 s.",
        "",
    ]
    if asked.write:
        OUT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
