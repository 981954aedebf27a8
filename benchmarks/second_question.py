"""The second question, measured: `python benchmarks/second_question.py`.

"Why does Adam spike where SGD is smooth?" The training of the question (14-100-40-4, batches of 32) in its
configurations: how often the network itself spikes, how often only the plotted mini-batch loss does, what each change
of the steps before a spike removes, whether the batch and the sample that are named are the right ones, how sharp the
loss is before the spikes of full batches, and what the same changes do from the first step on. The seeds are none of
those that the causes were written on (0 to 19). Writes docs/benchmarks/second_question.md.
"""

# ruff: noqa: E501  (sentences of the page stay whole)

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whyspike import sharpness
from whyspike.case import PLAIN, find_case
from whyspike.cases._tabular import Table, training
from whyspike.everychange import every_change
from whyspike.experiment import Experiment
from whyspike.interventions import ClipGradNorm, ScaleLr
from whyspike.observe import observe
from whyspike.optimizer_interventions import SetHyperparameters
from whyspike.profile import BEFORE, DECIDES, Profile, Trials
from whyspike.readers import read
from whyspike.record import watch
from whyspike.replay import Subject
from whyspike.rerun import steps_of, train, train_recorded
from whyspike.seams import BASELINE, Intervention
from whyspike.training import Training
from whyspike.verify import spikes

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "second_question.md"
STATE, MEDIAN = 1.5, 64  # a spike of the network: the full loss above 1.5 times its median over 64 steps
PLOTTED = 3.0  # a spike that is seen: a mini-batch loss above 3 times its median
APART = 30  # steps; nearer ones are one spike

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "SGD .01": {"optimizer": "sgd", "lr": 0.01},
    "Adam 1e-4": {"lr": 1e-4},
    "Adam 1e-3 (default)": {"lr": 1e-3},
    "SGD .1": {"optimizer": "sgd", "lr": 0.1},
    "Adam 3e-3": {"lr": 3e-3},
    "Adam 1e-2": {"lr": 1e-2},
    "Adam 1e-2, no label noise": {"lr": 1e-2, "noise": 0.0},
    "SGD .3, no label noise": {"optimizer": "sgd", "lr": 0.3, "noise": 0.0},
    "SGD .1, .5 % outliers": {"optimizer": "sgd", "lr": 0.1, "outliers": 0.005},
    "Adam 1e-3, .5 % outliers": {"lr": 1e-3, "outliers": 0.005},
    "Adam 1e-2, last batch of 1": {"lr": 1e-2, "last": 1},
    "Adam 1e-2, last batch dropped": {"lr": 1e-2, "last": 1, "drop_last": True},
    "Adam 1e-2, regression": {"lr": 1e-2, "task": "regression", "noise": 0.05},
    "Adam 1e-2, regression, full batch": {"lr": 1e-2, "task": "regression", "noise": 0.05, "batch_size": None},
    "Adam 3e-4, regression, full batch": {"lr": 3e-4, "task": "regression", "noise": 0.05, "batch_size": None},
    "Adam 1e-2, full batch": {"lr": 1e-2, "batch_size": None},
}
REPLAYED = (
    "Adam 1e-2, last batch of 1",
    "Adam 1e-2, no label noise",
    "SGD .3, no label noise",
    "Adam 1e-2, regression",
    "Adam 1e-2, regression, full batch",
)
SCRATCH = ("Adam 1e-2, last batch of 1", "Adam 1e-2, no label noise", "Adam 1e-2, regression, full batch")


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- the runs


@dataclass
class Trained:
    """One run: the mini-batch loss before every step, and the loss of all samples after it."""

    plotted: np.ndarray
    state: np.ndarray


def run(made: Training) -> Trained:
    dataset = made.loader.dataset  # type: ignore[attr-defined]
    assert isinstance(dataset, Table)
    plotted, state = [], []
    for _, _, (batch,) in steps_of(made):
        made.optimizer.zero_grad(set_to_none=True)
        loss = made.loss_fn(made.model, batch)
        loss.backward()
        made.optimizer.step()
        plotted.append(float(loss.detach()))
        with torch.no_grad():
            state.append(float(made.loss_fn(made.model, (dataset.x, dataset.y))))
    return Trained(np.array(plotted), np.array(state))


def over_median(values: np.ndarray) -> np.ndarray:
    """Each value over the median of the 64 before it; nan for the first ones."""
    windows = np.lib.stride_tricks.sliding_window_view(values, MEDIAN)[:-1]
    return np.concatenate([np.full(MEDIAN, np.nan), values[MEDIAN:] / np.median(windows, axis=1)])


def episodes(factors: np.ndarray, line: float) -> list[tuple[int, float]]:
    """(first step, peak) of each excursion above a line."""
    found: list[tuple[int, float]] = []
    last = -APART
    for step in np.flatnonzero(factors > line):
        if step - last < APART and found:
            found[-1] = (found[-1][0], max(found[-1][1], float(factors[step])))
        else:
            found.append((int(step), float(factors[step])))
        last = step
    return found


def runs_table(seeds: Sequence[int]) -> list[str]:
    rows = [
        "| run | spikes of the network | highest | steps with a mini-batch loss above 3 x its median | of them with the "
        "network up by 10 % within 5 steps | final loss | rough |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, how in CONFIGURATIONS.items():
        counts, highest, plotted, moved, final, rough = [], [], [], [], [], []
        for seed in seeds:
            say(f"{name}, seed {seed}")
            made = run(training(seed, **how))
            state = over_median(made.state)
            found = episodes(state, STATE)
            counts.append(len(found))
            highest.append(max((h for _, h in found), default=float("nan")))
            seen = np.flatnonzero(over_median(made.plotted) > PLOTTED)
            plotted.append(len(seen))
            moved.append(sum(bool((state[s : s + 5] > 1.1).any()) for s in seen))
            final.append(float(np.median(made.state[-64:])))
            rough.append(float(np.abs(np.diff(np.log(made.state))).mean()))
        top = np.nanmax(highest) if np.isfinite(highest).any() else None
        share = f"{sum(moved)} of {sum(plotted)}" if sum(plotted) else "–"
        rows.append(
            f"| {name} | {', '.join(map(str, counts))} | {f'{top:.3g}' if top else '–'} | "
            f"{', '.join(map(str, plotted))} | {share} | {np.median(final):.2g} | {np.median(rough):.4f} |"
        )
    return rows


# --------------------------------------------------------------------------- the replays


@dataclass
class Replays:
    """The profiles of one configuration's spikes, and what each change removed of each."""

    profiles: list[Profile] = field(default_factory=list)
    removed: dict[str, list[float]] = field(default_factory=dict)
    right_batch: list[bool] = field(default_factory=list)  # the named batch is the one whose absence removes most
    small: list[bool] = field(default_factory=list)  # the named batch is a smaller one
    right_sample: list[bool] = field(default_factory=list)
    blamed: int = 0  # full-batch spikes with a batch or a sample
    bitwise: list[bool] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)  # sharpness over the limit at snapshots


def replay(build: Callable[[int], Training], seeds: Sequence[int], *, full: bool) -> Replays:
    found = Replays()
    for seed in seeds:
        made = build(seed)
        odd = set(made.loader.dataset.odd)  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() as folder:
            recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=Path(folder) / "run", closely=True)
            with recorder as rec:
                train_recorded(made, rec)
            record = read(Path(folder) / "run")
            subject = Subject.of(recorder, record)
            assert subject is not None
            experiment = Experiment(subject, observe(record, subject))
            with subject.kept():
                experiment.measure_states()
                seen = experiment.profile()
                say(f"  seed {seed}: {len(seen.profiles)} spikes replayed")
                for p in seen.profiles.values():
                    found.profiles.append(p)
                    event = seen.event(p.event)
                    trials = Trials(experiment, experiment.pairs((event.id,))[0])
                    found.bitwise.append(experiment.replay(trials.pair, BASELINE).reproduced)
                    if full:
                        arms: list[Intervention] = [
                            *every_change(seen, subject),
                            ScaleLr(0.9, "learning rate x 0.9", "always"),
                        ]
                        for arm in arms:
                            words = "eps = the median of sqrt(v)" if arm.words.startswith("eps") else arm.words
                            found.removed.setdefault(words, []).append(trials.removed(arm))
                    if p.same_batch:
                        found.blamed += p.batch_step is not None or p.sample is not None or bool(event.sample_ids)
                        continue
                    skipped = {w: s for w, s in p.shares if w.endswith("skipped")}
                    if skipped and max(skipped.values()) >= DECIDES:
                        named = p.batch_step is not None and (p.batch_share or 0.0) == max(skipped.values())
                        found.right_batch.append(named)
                        row = int(np.searchsorted(record.step, p.batch_step or 0))
                        assert record.n_samples is not None
                        found.small.append(bool(record.n_samples[row] < (record.batch_size or 0)))
                        if odd and record.sample_ids is not None:
                            carries = odd & {int(i) for i in record.sample_ids[row]}
                            if carries:
                                found.right_sample.append(p.sample_known and p.sample in carries)
                for path in record.capsules:
                    state = subject.capsule(path)
                    if any(p.same_batch for p in seen.profiles.values()) and state.steps and state.steps[0].batches:
                        near = min(abs(state.step - p.onset) for p in seen.profiles.values())
                        if near > 2 * BEFORE:
                            subject.at(subject.window(state.steps[0].step), state.step)
                            ratio = sharpness.measure(
                                subject.model, subject.optimizer, subject.loss_fn, state.steps[0].batches[0]
                            ).ratio
                            found.quiet.append(ratio)
    return found


def kinds(found: Replays) -> str:
    names = ("one sample", "one batch", "large steps", "instability", "undecided")
    counted = [(n, sum(p.kind == n for p in found.profiles)) for n in names]
    return ", ".join(f"{n}: {k}" for n, k in counted if k) or "none"


def replay_table(replayed: dict[str, Replays]) -> list[str]:
    words = list(dict.fromkeys(w for r in replayed.values() for w in r.removed))
    rows = [f"| change | {' | '.join(replayed)} |", f"|---{'|---' * len(replayed)}|"]
    best = [[p.batch_share for p in r.profiles if p.batch_share is not None] for r in replayed.values()]
    rows.append(
        "| the best single batch of the 15 around the onset skipped | "
        + " | ".join(f"{np.median(b):.2f}" if b else "none" for b in best)
        + " |"
    )
    for w in words:
        cells = [f"{np.median(r.removed[w]):.2f}" if r.removed.get(w) else "–" for r in replayed.values()]
        rows.append(f"| {w} | {' | '.join(cells)} |")
    rows.append(f"| **spikes replayed** | {' | '.join(str(len(r.profiles)) for r in replayed.values())} |")
    rows.append(
        f"| unchanged replays that are bitwise the record | {' | '.join(str(sum(r.bitwise)) for r in replayed.values())} |"
    )
    rows.append(f"| **kinds** | {' | '.join(map(kinds, replayed.values()))} |")
    return rows


def naming_lines(replayed: dict[str, Replays], outliers: Replays) -> list[str]:
    last = replayed["Adam 1e-2, last batch of 1"]
    full = replayed["Adam 1e-2, regression, full batch"]
    lines = []
    for name, found in (*replayed.items(), ("SGD .03, regression, 2 misplaced decimal points of 7,936", outliers)):
        if found.right_batch:
            lines.append(
                f"- {name}: skipping one batch removed 80 % or more of {len(found.right_batch)} of {len(found.profiles)} "
                f"spikes; that batch was named in {sum(found.right_batch)}."
            )
    lines += [
        f"- In the run with a last batch of 1, the named batch was that one in {sum(last.small)} of {len(last.small)}.",
        f"- Of the spikes whose batch holds an outlier, its dataset index was named in {sum(outliers.right_sample)} of "
        f"{len(outliers.right_sample)}.",
        f"- Of {len(full.profiles)} full-batch spikes, {full.blamed} blamed a batch or a sample.",
    ]
    return lines


def sharpness_lines(found: Replays) -> list[str]:
    before = np.array([r for p in found.profiles for r in p.sharpness[-2:]])
    inside = float(np.mean((before >= 0.85) & (before <= 1.1)))
    quiet = np.array(found.quiet)
    low, high = np.quantile(before, [0.05, 0.95])
    lines = [
        f"Sharpness of the loss in Adam's metric, times lr / 38, in the 4 steps before {len(found.profiles)} onsets: median "
        f"{np.median(before):.3f}, 5 to 95 % {low:.3f} to {high:.3f}; {inside:.0%} between .85 and 1.1.",
    ]
    if len(quiet):
        lines.append(f"At {len(quiet)} snapshots far from a spike: median {np.median(quiet):.3f}.")
    return lines


# --------------------------------------------------------------------------- from scratch


def scratch_table(seeds: Sequence[int]) -> list[str]:
    arms: dict[str, Callable[[], Intervention]] = {
        "as it was": lambda: BASELINE,
        "learning rate / 3": lambda: ScaleLr(1 / 3, "learning rate / 3", "always"),
        "beta2 = .99": lambda: SetHyperparameters({"betas": (0.9, 0.99)}, "beta2 = .99"),
        "beta2 = .9": lambda: SetHyperparameters({"betas": (0.9, 0.9)}, "beta2 = .9"),
        "gradient clipped to .05": lambda: ClipGradNorm(0.05, "clipped", "always"),
    }
    rows = [f"| run | {' | '.join(arms)} |", f"|---{'|---' * len(arms)}|"]
    for name in SCRATCH:
        how = {**CONFIGURATIONS[name], "steps": 3000 if CONFIGURATIONS[name].get("batch_size", 32) else 1200}
        cells = []
        for words, make in arms.items():
            say(f"{name}, {words}")
            counts = [spikes(train(lambda seed, h=how: training(seed, **h), make(), seed=seed)) for seed in seeds]
            cells.append(", ".join(map(str, counts)))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


# --------------------------------------------------------------------------- the page


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2, help="of the runs and of the trainings from scratch")
    parser.add_argument("--replayed", type=int, default=3, help="seeds whose spikes are replayed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds, held_out = range(100, 100 + chosen.seeds), range(100, 100 + chosen.replayed)
    table = runs_table(seeds)
    replayed = {}
    for name in REPLAYED:
        say(f"replaying: {name}")
        replayed[name] = replay(lambda seed, h=CONFIGURATIONS[name]: training(seed, **h), held_out, full=True)
    say("replaying: outliers")
    sick = find_case("outlier-sample").sick
    outliers = replay(lambda seed: sick(seed, vary=PLAIN), held_out, full=False)  # type: ignore[arg-type, return-value]
    scratch = scratch_table(seeds)
    lines = [
        "# The second question, measured",
        "",
        f"`python benchmarks/second_question.py --seeds {chosen.seeds} --replayed {chosen.replayed}`",
        "",
        *WHAT,
        "",
        "## How often the network spikes, and how often the plot does",
        "",
        f"4,000 steps each, seeds {', '.join(map(str, seeds))}. A spike of the network: the loss of all samples above 1.5 "
        "times its median over 64 steps. *Rough* is the mean of |d log loss of all samples| per step.",
        "",
        *table,
        "",
        "## What each change of the steps before a spike removes",
        "",
        f"Seeds {', '.join(map(str, held_out))}. Each spike is replayed from 12 steps before its onset to 20 after, with one "
        "thing changed. Median over the spikes of the share of their area (log loss times steps, on 256 fixed samples) that "
        "is gone; negative where the spike grows.",
        "",
        *replay_table(replayed),
        "",
        "## Which batch, which sample",
        "",
        *naming_lines(replayed, outliers),
        "",
        "## Full batches: the edge of stability",
        "",
        *sharpness_lines(replayed["Adam 1e-2, regression, full batch"]),
        "",
        "## This spike and a better setting are two questions",
        "",
        f"Spikes (of the loss or of the network) in trainings from scratch, seeds {', '.join(map(str, seeds))}; 3,000 steps, "
        "full batch 1,200.",
        "",
        *scratch,
        "",
        *MEANS,
    ]
    text = "\n".join(lines)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(text + "\n", encoding="utf-8")
    print(text)


WHAT = [
    "[Explanation of spikes in training loss vs. iterations with Adam](https://stats.stackexchange.com/q/303857) asks why",
    "Adam spikes where SGD is smooth. The public answers: spikes are *an unavoidable consequence of mini-batches*, which full",
    "batches do not have; Adam has come further down, and SGD would spike there, too; outliers; a small last batch.",
]
MEANS = [
    "## What follows",
    "",
    "- *Full batches do not spike*: not so. Full-batch Adam at lr .01 spikes most regularly of all, without any randomness",
    "  in the data. Before each spike the curvature lies at what the step size can stand, and a learning rate a tenth lower",
    "  removes it. Mini-batch Adam at ordinary learning rates hardly spikes.",
    "- *SGD would spike as well at a lower loss*: so it does. The smooth curve is the one that has not come as far.",
    "- *The spikes that are seen are mostly none of the network's*: see the first table. A mini-batch above 3 times its",
    "  median is ordinary luck of 32 samples once the loss is low.",
    "- *A small last batch*: the strongest single cause here. *Outliers*: for SGD; Adam divides them away.",
    "- A smaller beta2, or a hard clip, removes much of a *given* last-batch spike, and makes more spikes when the training",
    "  runs with it from the start. What caused this spike and what is a better setting are two tests, reported apart.",
]


if __name__ == "__main__":
    main()
