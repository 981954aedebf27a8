"""How runs of a script share the cores: joblib with one process and with two, and Ray with two workers.

    python benchmarks/script_arms.py                 # four arms of about 60 s of the processor; about 8 minutes
    python benchmarks/script_arms.py --seconds 20    # shorter arms, without Ray's share of a minute
    python benchmarks/script_arms.py --no-ray        # where Ray is not installed

Every arm is the same training on one thread; it says itself how much of the processor it took. Targets: two processes
are 1.6 times as fast as one on two cores, and Ray with two workers takes at most 1.5 times as long as joblib.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from whyspike.arms import ScriptSource, Wanted
from whyspike.interventions import ScaleLr
from whyspike.launch import On
from whyspike.script import Command

SPEED_UP, RAY = 1.6, 1.5
SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
data = TensorDataset(torch.randn(4096, 256), torch.randint(10, (4096,)))
model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(int(sys.argv[1])):
    for x, y in DataLoader(data, 64, shuffle=True):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def took(folder: Path, name: str, epochs: int, arms: int, on: On, workers: int) -> float:
    """Seconds until all arms have ended."""
    source = ScriptSource(
        command=Command(str(folder / "train.py"), (str(epochs),)),
        cwd=folder,
        store=folder / name,
        seconds=1.0,
        threads=1,
        on=on,
        workers=workers,
    )
    begun = time.perf_counter()
    source.results([Wanted(intervention=ScaleLr(1.0 - 0.01 * k, where="always")) for k in range(arms)])
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one arm")
    parser.add_argument("--arms", type=int, default=4)
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
        few = took(folder, "warm", 2, 1, "joblib", 1)
        per_epoch = (took(folder, "calibrate", 12, 1, "joblib", 1) - few) / 10
        epochs = max(1, round(options.seconds / max(per_epoch, 1e-3)))
        print(f"{options.arms} arms of {epochs} epochs, about {epochs * per_epoch:.0f} s each", file=sys.stderr)
        one = took(folder, "one", epochs, options.arms, "joblib", 1)
        two = took(folder, "two", epochs, options.arms, "joblib", 2)
        print("| | seconds | |\n|---|---|---|")
        print(f"| joblib, one process | {one:.1f} | |")
        print(f"| joblib, two processes | {two:.1f} | {one / two:.2f} times as fast (target {SPEED_UP}) |")
        if not options.no_ray:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            os.environ["HOME"] = scratch  # Ray writes a token there
            import ray  # type: ignore[import-not-found]

            begun = time.perf_counter()
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
            started = time.perf_counter() - begun
            three = took(folder, "ray", epochs, options.arms, "ray", 2)
            ray.shutdown()
            print(f"| Ray, two workers | {three:.1f} | {three / two:.2f} times joblib's time (target {RAY}) |")
            print(f"| starting Ray | {started:.1f} | |")


if __name__ == "__main__":
    main()
