"""The judge under the null: a thousand experiments whose deciding change does nothing that the placebo does not.

    python benchmarks/null_experiments.py [--experiments 1000]     (20 minutes; a stopped run goes on where it was)

Trainings with real events are recorded, and their events replayed. In place of a cause's intervention stands a change
that is drawn from the same kind as the placebo: another random shake of the learning rates, other samples in another
ordinary batch, another ordinary batch skipped. What such an experiment confirms is false. The events, the measure and the
seeds differ from experiment to experiment. Writes docs/benchmarks/null_experiments.md.
"""

# ruff: noqa: E501  (sentences of the page stay whole)

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _kept import kept

from whyspike.case import PLAIN, find_case
from whyspike.cause import Cause, Draw, Observation, suspect
from whyspike.errors import NotReplayable
from whyspike.excess import Measure
from whyspike.experiment import Experiment
from whyspike.interventions import ReplaceSamples, SkipBatch
from whyspike.judge import ALPHA, judge, outcome
from whyspike.observe import observe
from whyspike.optimizer_interventions import ShakeLr
from whyspike.readers import read
from whyspike.record import watch
from whyspike.replay import Subject
from whyspike.rerun import train_recorded
from whyspike.seams import Intervention
from whyspike.stats import wilson
from whyspike.training import Training
from whyspike.types import Suspicion

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "null_experiments.md"
SOURCES = (
    "momentum-carry-over",
    "double-averaged-loss",
    "sum-reduction",
    "wrong-denominator",
    "small-last-batch",
    "outlier-sample",
    "adaptive-eos",
    "lr-too-high",
    "batch-size-noise",
)
FIRST_SEED = 500
EARLIER = (-6, -5, -4, -3, -2)  # ordinary steps before an event
MEASURES: tuple[Measure, ...] = ("reported", "state", "dip", "deviation")
KINDS = ("learning rates shaken by a tenth", "other samples in an ordinary batch", "an ordinary batch skipped")


class Nothing(Cause):
    """a change that has no part in it."""

    family = "control"
    title = "nothing"

    def __init__(self, kind: str, measure: Measure, seed: int) -> None:
        self.kind, self.measure, self.seed = kind, measure, seed  # type: ignore[misc]

    def signature(self, seen: Observation) -> Suspicion | None:
        return None

    def _change(self, draw: Draw, words: str, at: int) -> Intervention:
        if self.kind == KINDS[0]:
            return ShakeLr(0.1, words, seed=self.seed + at)
        if self.kind == KINDS[1]:
            return ReplaceSamples(draw, words, where=at)
        return SkipBatch(words, where=at)

    def _two(self) -> Sequence[int]:
        return np.random.default_rng(self.seed).permutation(EARLIER)[:2].tolist()

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        return [self._change(draw, f"null {self.seed}", self._two()[0])]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        return self._change(draw, f"placebo {self.seed}", self._two()[1])


def experiments(name: str, seed: int, n: int, done: int) -> Counter[str]:
    """Run n null experiments on the events of one training."""
    found: Counter[str] = Counter()
    made = find_case(name).sick(seed, PLAIN)
    assert isinstance(made, Training)
    with tempfile.TemporaryDirectory() as folder:
        recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=Path(folder) / "run", closely=True)
        with recorder as rec:
            train_recorded(made, rec)
        record = read(Path(folder) / "run")
        subject = Subject.of(recorder, record)
        assert subject is not None
        experiment = Experiment(subject, observe(record, subject))
        with recorder.paused(), subject.kept():
            experiment.measure_states()
            ids = [e.id for e in experiment.seen.events if not e.is_wave and e.kind != "non-finite"]
            rng = np.random.default_rng([seed, done])
            for k in range(n if ids else 0):
                some = [str(i) for i in rng.choice(ids, min(len(ids), int(rng.integers(1, 9))), replace=False)]
                cause = Nothing(
                    KINDS[(done + k) % len(KINDS)], MEASURES[int(rng.integers(len(MEASURES)))], 7 * (done + k)
                )
                suspicion = suspect(cause, [experiment.seen.event(i) for i in some], [])
                try:
                    judged = judge(experiment.trials(cause, suspicion))
                except NotReplayable:
                    judged = None
                if judged is None:
                    found["no replay"] += 1
                    continue
                found[outcome(judged, judged.p_value, suspicion)[0]] += 1
                found["p at most .01"] += judged.p_value <= ALPHA
                found["removed 80 % or more"] += judged.removed >= 0.8
    return found


def judged(found: Counter[str]) -> int:
    return sum(found[o] for o in ("confirmed", "likely", "inconclusive", "refuted"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--each", type=int, default=40, help="on the events of one training")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    rows: dict[str, Counter[str]] = {}
    turn = 0
    while judged(total) < asked.experiments:
        name, seed, done = SOURCES[turn % len(SOURCES)], FIRST_SEED + turn, turn * asked.each
        part = f"{name} {seed}, {asked.each} experiments from {done} on"
        made = Counter(kept("null_experiments", part, lambda: experiments(name, seed, asked.each, done)))  # noqa: B023
        rows.setdefault(name, Counter()).update(made)
        total.update(made)
        print(f"{judged(total)} experiments; {name} {seed}: {dict(made)}", file=sys.stderr, flush=True)
        turn += 1
    n = judged(total)
    low, high = wilson(total["confirmed"], n)
    columns = ("confirmed", "likely", "inconclusive", "refuted", "p at most .01", "removed 80 % or more")
    page = [
        "# The judge, where there is nothing to find",
        "",
        f"Written by `python benchmarks/null_experiments.py --experiments {asked.experiments}`; its docstring says how.",
        "",
        f"Falsely confirmed: {total['confirmed']} of {n} experiments (95 %: {low:.1%} to {high:.1%}). Before the bars of the "
        f"effect's size, p was at most .01 in {total['p at most .01'] / n:.1%}; no correction for several causes was made.",
        "",
        f"| events of | experiments | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
        *(f"| {name} | {judged(c)} | {' | '.join(str(c[k]) for k in columns)} |" for name, c in rows.items()),
        f"| all | {n} | {' | '.join(str(total[k]) for k in columns)} |",
        "",
    ]
    print("\n".join(page))
    OUT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
