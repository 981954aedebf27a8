"""The first question, measured: `python benchmarks/first_question.py`.

Trains the detector whose loss is divided twice, replays the steps around its spikes with one thing changed at a time,
and prints what each change removes; then the loss of the last batch against its size; then the cures from scratch.
The seeds are none of those that the case was tuned on (0 to 5). Writes docs/benchmarks/first_question.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from whyspike.case import find_case
from whyspike.cases.double_averaged_loss import multibox_loss, multibox_loss_averaged_twice, scenes, training
from whyspike.pipeline import demo
from whyspike.types import Diagnosis, Trial

SIZES = (1, 2, 4, 8, 16, 24)
OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "first_question.md"


def exponent_table() -> list[str]:
    """Reported over honest loss of a last batch of b samples, over that of a full batch; expected (b/B)**-1."""
    made = training(twice=True)
    data = scenes(1026)
    rng = np.random.default_rng(0)
    rows, xs, ys = ["| last batch b | B/b | measured |", "|---|---|---|"], [], []

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        picked = torch.as_tensor(rng.choice(len(data), n, replace=False))
        a, b, c = data[picked]
        return a, b, c

    with torch.no_grad():
        full = float(
            np.mean(
                [
                    float(multibox_loss_averaged_twice(made.model, x) / multibox_loss(made.model, x))
                    for x in (batch(32),) * 4
                ]
            )
        )
        for b in SIZES:
            ratios = []
            for _ in range(64):
                x = batch(b)
                ratios.append(float(multibox_loss_averaged_twice(made.model, x) / multibox_loss(made.model, x)) / full)
            rows.append(f"| {b} | {32 / b:.2f} | {np.mean(ratios):.2f} |")
            xs.append(np.log(b))
            ys.append(np.log(np.mean(ratios)))
    slope = float(np.polyfit(xs, ys, 1)[0])
    return [*rows, "", f"log-log slope {slope:+.3f} (expected -1.00 ± .02)"]


def _at(trials: list[Trial], k: int) -> float:
    """Median over pairs of the probe loss k steps after the event's, over its level before; the run's end has none."""
    reached = [t for t in trials if t.event_step - t.first_step + k < len(t.state)]
    return float(np.median([_rise(t, k) + 1 for t in reached])) if reached else float("nan")


def replay_table(made: Diagnosis) -> list[str]:
    """What each change does to the probe loss after the last batch, and to the plotted spike."""
    rows = [
        "| replay | pairs | plotted spike | +0 | +1 | +5 | +10 | +20 | share of the excess removed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    named: dict[tuple[str, str, str], list[Trial]] = {}
    for t in made.trials:
        named.setdefault((t.cause, t.arm, t.words), []).append(t)
    for verdict in made.verdicts:
        for arm in verdict.arms:
            trials = named[(verdict.cause, arm.arm, arm.words)]
            height = np.median([t.reported[t.event_step - t.first_step] / t.reported_reference for t in trials])
            share = "" if arm.share_removed is None else f"{arm.share_removed:.0%}"
            cells = " | ".join(f"{_at(trials, k):.2f}" for k in (0, 1, 5, 10, 20))
            rows.append(f"| {verdict.cause}: {arm.arm}, {arm.words} | {arm.n} | {height:.2f} | {cells} | {share} |")
    return rows


def momentum_line(made: Diagnosis) -> str:
    """What setting the momentum to zero right after the spike's step removes of the excess five steps later."""
    named: dict[str, dict[int, Trial]] = {"as it was": {}, "momentum set to zero right after it": {}}
    for t in made.trials:
        if t.cause == "momentum-carry-over" and t.words in named and t.arm != "placebo":
            named[t.words][t.pair] = t
    base, zeroed = named.values()
    shared = [
        k
        for k in sorted(base.keys() & zeroed.keys())
        if base[k].event_step - base[k].first_step + 5 < len(base[k].state)
    ]
    first = np.median([_rise(zeroed[k], 0) / _rise(base[k], 0) for k in shared])
    removed = 1 - np.median([_rise(zeroed[k], 5) for k in shared]) / np.median([_rise(base[k], 5) for k in shared])
    return (
        f"Momentum set to zero right after the spike's step: {first:.0%} of the first point's excess stays, "
        f"{removed:.0%} of the excess five steps later is gone ({len(shared)} pairs; expected 100 % and at least 40 %)."
    )


def _rise(t: Trial, k: int) -> float:
    """The excess of the probe loss k steps after the event's step, relative to its level before."""
    return t.state[t.event_step - t.first_step + k] / t.state_reference - 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# The first question, measured", "", "`python benchmarks/first_question.py`", "", *exponent_table(), ""]
    case = find_case("double-averaged-loss")
    for seed in range(100, 100 + chosen.seeds):
        started = time.monotonic()
        made = demo(case, seed=seed, progress=lambda words, done: print(f"\r{words[:70]:<70}", end="", file=sys.stderr))
        took = time.monotonic() - started
        base = [
            t for t in made.trials if t.arm == "baseline" and t.reproduced is not None and t.cause == made.answer.cause
        ]
        lines += [
            f"## Seed {seed}: {made.answer.status}, {made.answer.cause} ({took:.0f} s on one thread)",
            "",
            made.answer.sentence,
            "",
            f"Unchanged replays that are bitwise the record: {sum(bool(t.reproduced) for t in base)} of {len(base)}.",
            "",
            *replay_table(made),
            "",
            momentum_line(made),
            "",
        ]
        for verdict in made.verdicts[:1]:
            lines += [
                "| cure, trained from scratch | verified | final probe loss, before | and after | last batch, before "
                "| and after | events, before | and after |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for cure in verdict.cures:
                n = cure.numbers or {}
                pairs = ("final_probe_loss", "last_batch_factor", "events")
                cells = [f"{n.get(f'{name}_{when}', np.nan):.3g}" for name in pairs for when in ("before", "after")]
                lines.append(f"| {cure.words} | {cure.verified} | {' | '.join(cells)} |")
            lines.append("")
    text = "\n".join(lines)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
