"""What a proof costs beside the training that it explains: `python benchmarks/proof_cost.py` (a quarter of an hour).

Trainings of the catalogue with wider networks, so that each takes a minute of processor time or more. Counted is the
processor time of this process on one thread, of the training as it is recorded and of everything that
`diagnose(prove=True)` does after it; the cures, which are trainings of their own, are not in it. Writes
docs/benchmarks/proof_cost.md.
"""

# ruff: noqa: E501  (sentences of the page stay whole)

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _kept import kept

from whyspike.allowance import FREE_S, SHARE
from whyspike.case import Vary, find_case
from whyspike.record import watch
from whyspike.rerun import train_recorded
from whyspike.training import Training

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "proof_cost.md"
SEED = 100  # none that a case was made on
CASES: dict[str, float] = {  # by how much the network is wider
    "adaptive-eos": 18.0,
    "lr-too-high": 50.0,
    "outlier-sample": 40.0,
    "small-last-batch": 13.0,
}


def measured(name: str, width: float) -> dict[str, Any]:
    made = find_case(name).sick(SEED, Vary(width=width))
    assert isinstance(made, Training)
    with tempfile.TemporaryDirectory() as folder:
        recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=Path(folder) / "run", closely=True)
        began = time.process_time()
        with recorder as rec:
            train_recorded(made, rec)
        trained = time.process_time() - began
        began = time.process_time()
        found = recorder.diagnose(prove=True)
        proven = time.process_time() - began
    first = found.verdicts[0] if found.verdicts else None
    return {
        "parameters": sum(p.numel() for p in made.model.parameters()),
        "steps": found.run.steps,
        "trained": trained,
        "proven": proven,
        "events": len(found.events),
        "answer": f"{first.outcome}[{first.cause}]" if first and found.answer.cause else found.answer.status,
        "pairs": max((a.n for v in found.verdicts for a in v.arms if a.arm == "baseline"), default=0),
        "missing": list(found.missing),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one case; nothing is written then")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = [n for n in CASES if chosen.only in (None, n)]
    found = {n: kept("proof_cost", f"{n}, {CASES[n]:g} times as wide", lambda: measured(n, CASES[n])) for n in names}  # noqa: B023
    ratios = [m["proven"] / m["trained"] / max(1, m["events"]) for m in found.values()]
    seconds = [m["proven"] / max(1, m["events"]) for m in found.values()]
    within = sum(r <= SHARE or s <= FREE_S for r, s in zip(ratios, seconds, strict=True))
    rows = [
        f"| {n} | {m['parameters']:,} | {m['steps']:,} | {m['trained']:.0f} s | {m['proven']:.0f} s | "
        f"{m['events']} | {m['proven'] / max(1, m['events']):.0f} s | "
        f"{m['proven'] / m['trained'] / max(1, m['events']):.2f} | {m['answer']} |"
        for n, m in found.items()
    ]
    page = [
        "# What a proof costs",
        "",
        "`python benchmarks/proof_cost.py`",
        "",
        f"Processor time of a training as it is recorded, and of its diagnosis with proof. The proof of an event may take "
        f"{SHARE:g} of the training, and {FREE_S:g} s in any case: what decides a verdict comes first, what only describes is "
        f"left out first. For an event, median: {np.median(ratios):.2f} of the training (asked: {SHARE:g}); within the share or "
        f"the {FREE_S:g} s: {within} of {len(found)}.",
        "",
        "| training | parameters | steps | training | proof | events | of an event | share of the training | answer |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Left out for want of time:",
        "",
        *(
            f"- {n}: {said}"
            for n, m in found.items()
            for said in [w for w in m["missing"] if "full=True" in w] or ["nothing"]
        ),
        "",
    ]
    print("\n".join(page))
    if chosen.only is None:
        OUT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
