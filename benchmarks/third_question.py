"""The third question, measured: `python benchmarks/third_question.py [--seeds 2] [--cases 1] [--large]`.

A next-item recommender whose training metric is best in the first quarter of every epoch. Trains it from scratch with
the order of the data, the gradients, the optimizer or the network changed, one at a time, and prints what the four
quarters of the epoch show in the training, on fixed training samples and in the validation. Then the loss of a sample
against the time since it was last trained on; then the last batch of three that hides in the same picture; then both
cases and their twins, recorded, replayed and diagnosed. The seeds are none of those that the cases and their causes
were written on (0 to 19).
Writes docs/benchmarks/third_question.md.

`--large` trains the sizes of the original question instead (50,000 samples in batches of 256; about 15 minutes), and
writes docs/benchmarks/third_question_large.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from whyspike import orders
from whyspike.case import find_case
from whyspike.cases.gru_recommender import training
from whyspike.form import percent
from whyspike.rerun import train
from whyspike.seams import BASELINE, Intervention
from whyspike.testing import score_case
from whyspike.types import Diagnosis

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "third_question.md"
LARGE = OUT.with_name("third_question_large.md")
SKIP = 5  # epochs at the begin, where the loss falls most
PROBE = 1024


@dataclass(frozen=True)
class Quarters:
    """The four quarters of the epoch about the trend, mean over the epochs: [seeds, 4] each, nats or shares."""

    train: np.ndarray
    hits: np.ndarray
    validation: np.ndarray
    probe: np.ndarray
    level: float  # of the last epoch's training loss

    @property
    def amplitude(self) -> float:
        """Highest minus lowest quarter of the training loss, of the mean over the seeds."""
        return float(np.ptp(self.train.mean(axis=0)))


def folded(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Quarters about a centred mean over one epoch, mean over the epochs after the first ones, [4]."""
    x = np.array(values)
    trend = np.convolve(x, np.array([0.5, 1, 1, 1, 0.5]) / 4, mode="valid")
    rest = np.concatenate([[np.nan] * 2, x[2:-2] - trend, [np.nan] * 2]).reshape(-1, 4)
    found = np.nanmean(rest[SKIP:], axis=0)
    return found - found.mean()


def one(seed: int, make: Callable[[], Intervention], how: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Train once; the four series at the quarters' ends, [epochs * 4] each."""
    made = training(seed, **how)
    data: Any = made.loader.dataset  # type: ignore[attr-defined]
    size: int = made.loader.batch_size  # type: ignore[attr-defined]
    rows = np.random.default_rng(0).choice(len(data), min(PROBE, len(data)), replace=False)
    items, target = data.items[rows], data.target[rows]
    intervention = make()
    steps = -(-len(data) // size) if not isinstance(intervention, orders.Divisible) else len(data) // size
    ends = {-(-steps // 4) * k for k in (1, 2, 3)} | {steps}
    seen: list[dict[str, float]] = []
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if (done - 1) % steps + 1 in ends:
            assert made.evaluate is not None
            found = made.evaluate(made.model)
            made.model.eval()
            with torch.no_grad():
                found["probe"] = float(F.cross_entropy(made.model(items), target))
            made.model.train()
            seen.append(found)

    train(made, intervention, seed=seed, on_step=on_step)
    return tuple(np.array([s[k] for s in seen]) for k in ("train_loss", "train_hr10", "val_loss", "probe"))


def quarters(seeds: Sequence[int], make: Callable[[], Intervention], **how: Any) -> Quarters:
    made = [one(seed, make, how) for seed in seeds]
    columns = [np.array([folded(run[k]) for run in made]) for k in range(4)]
    return Quarters(*columns, level=float(np.mean([run[0][-4:].mean() for run in made])))


# --------------------------------------------------------------------------- the tables


def plain() -> Intervention:
    return BASELINE


def cells(x: np.ndarray) -> str:
    return " ".join(f"{v:+.3f}" for v in x.mean(axis=0))


def row(words: str, found: Quarters, base: Quarters, expected: str) -> str:
    share = percent(found.amplitude / base.amplitude)
    return (
        f"| {words} | {cells(found.train)} | {found.amplitude:.3f} | {share} | {expected} | {cells(found.hits)} | "
        f"{cells(found.validation)} | {cells(found.probe)} | {found.level:.2f} |"
    )


HEAD = [
    "| from scratch | training loss, quarters 1 2 3 4 | highest - lowest | of the first row | expected | "
    "HR@10 in training | validation loss | loss on fixed training samples | last training loss |",
    "|---|---|---|---|---|---|---|---|---|",
]
REPLACED = "samples drawn with replacement"
SWAPPED = "quarters 1 2 3 4 in the order 2 1 4 3"
ANY = (0.0, float("inf"))
# The change, what is expected, and the shares of the first row's amplitude that agree with it.
ARMS: list[tuple[str, Callable[[], Intervention], dict[str, Any], str, tuple[float, float]]] = [
    (REPLACED, orders.WithReplacement, {}, "at most 10 %", (0, 0.1)),
    ("the same order in every epoch", orders.FixedOrder, {}, "no rise; each quarter keeps its own samples", ANY),
    ("the order of the epoch before, shuffled in 10 blocks", orders.BlockReshuffle, {}, "the same", ANY),
    ("the order reversed in every epoch", orders.ReversedOrder, {}, "at least 125 %", (1.25, float("inf"))),
    (SWAPPED, orders.QuartersSwapped, {}, "two dips an epoch: first and third quarter", ANY),
    ("gradients clipped to 0.4 (half their median norm)", plain, {"clip_grad_norm": 0.4}, "80 to 120 %", (0.8, 1.2)),
    ("LayerNorm after the GRU", plain, {"norm": True}, "80 to 120 %", (0.8, 1.2)),
    ("Adam with beta2 = .9", plain, {"betas": (0.9, 0.9)}, "80 to 120 %", (0.8, 1.2)),
    ("lr 3e-3", plain, {"lr": 0.003}, "smaller in nats: less is memorised at a visit", (0, 1)),
]


def scratch_table(seeds: Sequence[int]) -> list[str]:
    base = quarters(seeds, plain)
    lines = [*HEAD, row("as asked: reshuffled every epoch, Adam, lr 1e-2", base, base, "")]
    found: dict[str, Quarters] = {}
    outside: list[str] = []
    for words, make, how, expected, (low, high) in ARMS:
        say(words)
        made = found[words] = quarters(seeds, make, **how)
        lines.append(row(words, made, base, expected))
        share = made.amplitude / base.amplitude
        if not low <= share <= high:
            outside.append(f"{words} ({percent(share)}; expected {expected})")
    kept = [found[words].amplitude / base.amplitude for words, _, _, expected, _ in ARMS if expected == "80 to 120 %"]
    flat = float(np.ptp(base.probe.mean(axis=0))) / base.amplitude
    swapped = found[SWAPPED].train.mean(axis=0)
    return [
        *lines,
        "",
        "The public answer is divergence, to be cured by clipping and layer normalisation. The training loss falls to "
        f"{base.level:.2f} nats. Clipping, layer normalisation and beta2 = .9 leave "
        f"{', '.join(map(percent, kept))} of the pattern"
        f"{': none of them makes it smaller' if min(kept) >= 0.8 else ''}.",
        "",
        f"Outside of what was expected: {'; '.join(outside) or 'nothing'}.",
        "",
        "[At the sizes of the question](third_question_large.md) (`--large`) the same arms are measured with 49,920 "
        "samples in batches of 256.",
        "",
        "With the quarters swapped the training loss is lower in the first quarter than in the second by "
        f"{swapped[1] - swapped[0]:.3f} nats, and in the third than in the fourth by {swapped[3] - swapped[2]:.3f}.",
        "",
        f"The validation loss is {dip(base):+.3f} nats higher in the first half of an epoch than at its end; with "
        f"replacement, {dip(found[REPLACED]):+.3f}. Samples seen a short while ago are fitted once more, at the "
        "expense of what was not seen. That dip is real, it is small beside the sawtooth, and it goes with it.",
        "",
        f"The loss on {PROBE} fixed training samples moves by {percent(flat)} of what the training loss does "
        "(expected: at most 10 %). Each number is a mean over the epochs after the fifth, about a centred mean over "
        f"one epoch, and over the seeds {', '.join(map(str, seeds))}.",
    ]


def dip(found: Quarters) -> float:
    """The validation loss in the first half of the epoch less that at its end, nats."""
    mean = found.validation.mean(axis=0)
    return float(mean[:2].mean() - mean[3])


def last_batch_table(seeds: Sequence[int]) -> list[str]:
    """Two patterns of one period: each goes with a change of its own, and stays with the other's."""
    how: dict[str, Any] = {"lr": 0.012, "betas": (0.0, 0.999)}
    made = [
        ("reshuffled, a last batch of 3", quarters(seeds, plain, rest=3, **how)),
        ("reshuffled, the last batch left out", quarters(seeds, orders.Divisible, rest=3, **how)),
        ("with replacement, a last batch of 3", quarters(seeds, orders.WithReplacement, rest=3, **how)),
        ("reshuffled, N divisible", quarters(seeds, plain, **how)),
    ]
    after, without = made[0][1].probe.mean(axis=0), made[1][1].probe.mean(axis=0)
    return [
        *HEAD,
        *(row(words, found, made[0][1], "") for words, found in made),
        "",
        "The fourth evaluation of an epoch comes right after the small batch. The loss on fixed training samples is "
        f"{after[3] - after[:3].mean():+.3f} nats higher there than at the other three; without that batch "
        f"{without[3] - without[:3].mean():+.3f}. The sawtooth of the training loss goes with replacement and stays "
        "without the small batch; what the small batch does stays with replacement and goes with the batch.",
        "",
        "With replacement and the small batch the training loss falls through the epoch "
        f"({cells(made[2][1].train)}): the network recovers from the batch. Beside a small batch, the change that "
        "takes the sawtooth away therefore removes more than 100 % of the rise.",
    ]


def large_page(seed: int) -> str:
    """The sizes of the original question, from scratch."""
    how: dict[str, Any] = {"n": 195 * 256, "batch_size": 256, "hidden": 64, "n_items": 1000}
    free: dict[str, Any] = {"betas": (0.0, 0.999)}
    arms: list[tuple[str, Callable[[], Intervention], dict[str, Any], str, tuple[float, float]]] = [
        ("as asked: Adam, lr 1e-2, a last batch of 80", plain, {"rest": 80}, "", ANY),
        (REPLACED, orders.WithReplacement, {"rest": 80}, "at most 10 %", (0, 0.1)),
        ("gradients clipped to 0.2", plain, {"rest": 80, "clip_grad_norm": 0.2}, "80 to 120 %", (0.8, 1.2)),
        ("LayerNorm after the GRU", plain, {"rest": 80, "norm": True}, "80 to 120 %", (0.8, 1.2)),
        ("Adam with beta2 = .9", plain, {"rest": 80, "betas": (0.9, 0.9)}, "80 to 120 %", (0.8, 1.2)),
        ("without momentum (beta1 = 0), a last batch of 80", plain, {"rest": 80, **free}, "80 to 120 %", (0.8, 1.2)),
        ("without momentum, N divisible", plain, free, "80 to 120 %", (0.8, 1.2)),
    ]
    made, outside = [], []
    for words, make, more, expected, (low, high) in arms:
        say(f"large: {words}")
        made.append(found := quarters([seed], make, **how, **more))
        share = found.amplitude / made[0].amplitude
        if not low <= share <= high:
            outside.append(f"{words} ({percent(share)}; expected {expected})")
    last, divisible = made[-2].probe.mean(axis=0), made[-1].probe.mean(axis=0)
    lines = [
        "# The third question at its own sizes",
        "",
        "`python benchmarks/third_question.py --large`",
        "",
        "49,920 samples in batches of 256 (and 80 more, where a last batch of 80 is trained on right before the fourth "
        "evaluation of an epoch), one seed. [The other page](third_question.md) has the smaller size, on which cases "
        "and causes are tested, and says what the columns are.",
        "",
        *HEAD,
        *(row(arm[0], found, made[0], arm[3]) for arm, found in zip(arms, made, strict=True)),
        "",
        f"Outside of what was expected: {'; '.join(outside) or 'nothing'}.",
        "",
        f"Without momentum the loss on {PROBE} fixed training samples is {last[3] - last[:3].mean():+.3f} nats higher "
        "after the batch of 80, at the fourth evaluation, than at the other three; with N divisible "
        f"{divisible[3] - divisible[:3].mean():+.3f}.",
    ]
    return "\n".join(lines)


def case_lines(name: str, seed: int, *, whole: bool) -> list[str]:
    """What a case and its twin are diagnosed as; of the case all that was seen, where `whole`."""
    started = time.process_time()
    made = score_case(find_case(name), seed)
    took = time.process_time() - started
    confirmed = ", ".join(f"{v.cause} (harm: {v.harm})" for v in made.sick.verdicts if v.outcome == "confirmed")
    lines = [
        f"### {name}, seed {seed}",
        "",
        f"As declared: {'yes' if not made.problems else 'no: ' + '; '.join(made.problems)}. Confirmed: "
        f"{confirmed or 'nothing'}. Case and twin took {took:.0f} s of one core.",
        "",
        f"> {made.sick.answer.sentence}",
        "",
        f"Twin: {made.healthy.answer.sentence}",
        "",
    ]
    return [*lines, *(diagnosis_lines(made.sick) if whole else [])]


def diagnosis_lines(made: Diagnosis) -> list[str]:
    lines = []
    lines += ["| verdict | harm | evidence | observed | expected | p |", "|---|---|---|---|---|---|"]
    for verdict in made.verdicts:
        if verdict.outcome == "refuted":
            continue
        for e in verdict.evidence:
            p = "" if e.p_value is None else f"{e.p_value:.2g}"
            name = f"{verdict.outcome}[{verdict.cause}]"
            lines.append(f"| {name} | {verdict.harm} | {e.statement} | {e.observed} | {e.expected} | {p} |")
    lines += [
        "",
        "| replayed from the epoch's boundary or the step | pairs | mean excess | removed |",
        "|---|---|---|---|",
    ]
    for verdict in made.verdicts:
        for arm in verdict.arms:
            removed = "" if arm.share_removed is None else percent(arm.share_removed)
            lines.append(
                f"| {verdict.cause}: {arm.arm}, {arm.words} | {arm.n} | {np.mean(arm.excess):.3f} | {removed} |"
            )
    return [*lines, ""]


def gap_lines(seed: int) -> list[str]:
    """The loss against the time since a sample was last trained on, of one recorded run of the case."""
    from whyspike import gaps
    from whyspike.readers import read
    from whyspike.record import watch
    from whyspike.replay import Subject
    from whyspike.rerun import train_recorded

    made = training(seed)
    with tempfile.TemporaryDirectory() as folder:
        recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=Path(folder) / "run")
        with recorder as rec:
            train_recorded(made, rec)
        run = read(Path(folder) / "run")
        subject = Subject.of(recorder, run)
        assert subject is not None
        with subject.kept():
            looked = gaps.look(subject.epochs)
        assert looked is not None
        found = gaps.curve(looked, run)
    assert found is not None
    law = gaps.quarter_gaps(run)
    assert law is not None
    return [
        f"Mean time since a sample was last trained on, quarters 1 to 4: {', '.join(f'{g:.2f}' for g in law)} epochs "
        "(expected for a reshuffle: 0.63, 0.88, 1.13, 1.38).",
        "",
        f"At frozen weights ({found.states} states of {found.clusters} epochs), the loss of a training sample grows by "
        f"{found.slope:+.2f} nats per epoch since it was last trained on (95 % {found.interval[0]:+.2f} to "
        f"{found.interval[1]:+.2f}):",
        "",
        "| epochs since | " + " | ".join(f"{g:.2f}" for g in found.gap) + " |",
        "|---|" + "---|" * len(found.gap),
        "| loss, nats | " + " | ".join(f"{v:+.2f}" for v in found.loss) + " |",
        "",
        f"Predicted from both for the quarters: {cells(found.predicted[None])}; observed: "
        f"{cells(found.observed[None])}; that is {percent(found.explained)} of it. The rest is what a sample's own "
        "visits have taught: every sample of an epoch has been seen equally often, and once more than in the epoch "
        "before.",
    ]


def say(words: str) -> None:
    print(f"\r{words[:76]:<76}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2, help="of the trainings from scratch, from 100 on")
    parser.add_argument("--cases", type=int, default=1, help="seeds of the cases and their twins, from 100 on")
    parser.add_argument("--large", action="store_true", help="the sizes of the question instead")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(100, 100 + chosen.seeds))
    if chosen.large:
        write(LARGE, large_page(seeds[0]))
        return
    lines = ["# The third question, measured", "", "`python benchmarks/third_question.py`", ""]
    lines += [
        "Why is a training metric best in the first quarter of every epoch, while the validation dips? Because a "
        "sample that comes up early in a reshuffled epoch was trained on a short while ago. With replacement "
        "the pattern is gone; clipping and layer normalisation do not make it smaller.",
        "",
    ]
    lines += ["## The four quarters of the epoch", "", *scratch_table(seeds), ""]
    lines += ["## The loss against the time since the last visit", "", *gap_lines(seeds[0]), ""]
    lines += ["## Two patterns of one period", "", *last_batch_table(seeds), ""]
    lines += ["## The cases", ""]
    for name in ("gru-recommender", "gru-last-batch"):
        for seed in range(100, 100 + chosen.cases):
            say(f"{name}, seed {seed}")
            lines += case_lines(name, seed, whole=seed == 100)
    write(OUT, "\n".join(lines))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
