"""Silence on healthy runs: `python benchmarks/healthy_seeds.py [--seeds 20] [--case NAME]`.

Trains the healthy twin of a case on many seeds, diagnoses and proves each, and counts the answers other than healthy.
The seeds begin at 100: those below are for building.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from whyspike.case import cases, find_case
from whyspike.pipeline import prove
from whyspike.stats import wilson

FIRST = 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--case", choices=list(cases()), default="double-averaged-loss")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    case = find_case(chosen.case)
    odd = 0
    for seed in range(FIRST, FIRST + chosen.seeds):
        with tempfile.TemporaryDirectory() as folder:
            made = prove(case.healthy, seed=seed, path=Path(folder) / "run", verify_cures=False)
        odd += made.answer.status != "healthy"
        print(f"seed {seed}: {made.answer.status} ({len(made.events)} events) {made.answer.sentence}", flush=True)
    low, high = wilson(odd, chosen.seeds)
    print(f"{odd} of {chosen.seeds} answers other than healthy (95 %: {low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
