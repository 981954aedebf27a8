"""The same sick trainings in five frameworks: is the answer the same? `python benchmarks/frameworks.py --write`.

    python benchmarks/frameworks.py                          # what is measured, and what is not yet
    python benchmarks/frameworks.py --only keras --write     # one framework, and the page
    python benchmarks/frameworks.py --training "third question"

Six trainings, each sick and as its healthy twin, in plain torch, Lightning, the Hugging Face Trainer, Accelerate and
Keras (on torch): recorded by the framework's own recorder, diagnosed and proven. It needs the extras `lightning`,
`huggingface` and `keras`. What is measured is kept in .cache, so that a stopped run goes on where it was. The seed is
none that the cases were written on. Writes docs/benchmarks/frameworks.md.
"""

# ruff: noqa: E501  (sentences of the page stay whole)
from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # before anybody imports keras

from _kept import SOURCE, find, kept
from _sick import TRAININGS
from _trainers import FRAMEWORKS, diagnosed

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "frameworks.md"
NAME = "frameworks"
SEED = 100
HEADS = {
    "torch": "plain torch",
    "lightning": "Lightning",
    "huggingface": "HF Trainer",
    "accelerate": "Accelerate",
    "keras": "Keras",
}
PACKAGES = {
    "torch": ("torch",),
    "lightning": ("lightning",),
    "huggingface": ("transformers",),
    "accelerate": ("accelerate",),
    "keras": ("keras",),
}
ARMS = ("sick", "healthy")


INTEGRATIONS = {
    "torch": (),
    "lightning": ("lightning",),
    "huggingface": ("huggingface",),
    "accelerate": ("huggingface",),
    "keras": ("keras", "_keras_seams"),
}


def part(training: str, arm: str, framework: str) -> str:
    """The words of one measurement, with a hash of what it depends on beside src/whyspike itself."""
    found = hashlib.sha256()
    for path in [
        *(SOURCE / "integrations" / f"{n}.py" for n in (*INTEGRATIONS[framework], "_recorded")),
        *(Path(__file__).with_name(f"_{n}.py") for n in ("sick", "trainers")),
    ]:
        found.update(path.read_bytes())
    versions = [importlib.metadata.version(p) for p in PACKAGES[framework]]
    return f"{training}, {arm}, {framework} {versions}, seed {SEED} {found.hexdigest()[:12]}"


def measure(training: str, arm: str, framework: str) -> dict[str, Any]:
    """Train, diagnose, prove; the answer and what it rests on."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        made = diagnosed(framework, TRAININGS[training].build(SEED, arm == "sick"), Path(folder))
        first = made.verdicts[0] if made.verdicts else None
        base = [t.noise for t in made.trials if t.arm == "baseline" and t.noise is not None]
        return {
            "status": made.answer.status,
            "cause": made.answer.cause,
            "outcome": first.outcome if first else None,
            "reason": first.reason if first else None,
            "sentence": made.answer.sentence,
            "verdicts": {v.cause: v.outcome for v in made.verdicts},
            "steps": made.run.steps,
            "events": len(made.events),
            "replays": len(base),
            "bitwise": sum(n == 0.0 for n in base),
            "seconds": time.monotonic() - began,
        }


def right(training: str, arm: str, found: Mapping[str, Any]) -> bool:
    if arm == "healthy":
        return found["status"] == "healthy" and found["cause"] != TRAININGS[training].cause
    # What does no harm is healthy, and named all the same.
    return (found["outcome"], found["cause"]) == ("confirmed", TRAININGS[training].cause)


def answer(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    if not found["cause"]:
        return found["status"]
    return f"{'healthy' if found['status'] == 'healthy' else found['outcome']}[{found['cause']}]"


def page(results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    lines = [
        "# The same trainings in five frameworks",
        "",
        "`python benchmarks/frameworks.py --write`, with the extras `lightning`, `huggingface` and `keras`.",
        "",
        "Six sick trainings and their healthy twins, each in the framework's own loop with its recorder, diagnosed and",
        "proven in the same process. In the torch frameworks the network, the loss, the optimizer and the data are those",
        "of a [case](../../src/whyspike/cases); in Keras they are written again in Keras' layers, losses and optimizers,",
        "on the torch backend. Batches are drawn by each framework's own loader, but where the order is what is sick (the",
        "third question, accumulation). The corrected accumulation counts tokens in plain torch, in Accelerate and, by",
        "`num_items_in_batch`, in the Trainer; Lightning and Keras have no such count, so that there the twin takes the",
        "four micro-batches of a step as one batch. `healthy[cause]` is found, named, and harmless: the sawtooth of the",
        "third question, and in Keras the stairs of its own running mean.",
        "",
        f"| training | | {' | '.join(HEADS.values())} |",
        f"|---|---|{'---|' * len(HEADS)}",
    ]
    for training, sick in TRAININGS.items():
        for arm in ARMS:
            words = f"**{training}**: {sick.words}" if arm == "sick" else ""
            cells = [answer(results.get((training, arm, f))) for f in FRAMEWORKS]
            lines.append(f"| {words} | {arm if arm == 'sick' else 'twin'} | {' | '.join(cells)} |")
    known = [(k, r) for k, r in results.items()]
    same = sum(right(t, a, r) for (t, a, _), r in known)
    replays, bitwise = sum(r["replays"] for _, r in known), sum(r["bitwise"] for _, r in known)
    missing = 2 * len(TRAININGS) * len(FRAMEWORKS) - len(known)
    rows = [
        [right(t, a, results[t, a, f]) for f in FRAMEWORKS if (t, a, f) in results] for t in TRAININGS for a in ARMS
    ]
    alike = sum(len(row) == len(FRAMEWORKS) and all(row) for row in rows)
    lines += [
        "",
        f"In {alike} of {len(rows)} trainings the answer is the same, and the expected one, in all {len(FRAMEWORKS)} frameworks. "
        f"{same} of {len(known)} answers are the expected one{f'; {missing} are not measured yet' if missing else ''}. "
        f"Of the unchanged replays of recorded steps {bitwise} of {replays} came out bitwise.",
    ]
    wrong = [(k, r) for k, r in known if not right(k[0], k[1], r)]
    if wrong:
        lines += ["", "Not as expected:", ""]
        for (training, arm, framework), r in wrong:
            why = f" ({r['reason']})" if r["reason"] else ""
            lines.append(f"- {training}, {arm}, {HEADS[framework]}: {answer(r)}{why}. {r['sentence']}")
    versions = [f"{p} {importlib.metadata.version(p)}" for f in FRAMEWORKS for p in PACKAGES[f]]
    return "\n".join([*lines, "", f"Seed {SEED}; {', '.join(versions)}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(FRAMEWORKS), action="append", help="a framework; may be given again")
    parser.add_argument("--training", choices=list(TRAININGS), action="append")
    parser.add_argument("--write", action="store_true", help="write the page of what is measured")
    parser.add_argument("--kept", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    results: dict[tuple[str, str, str], Any] = {}
    for framework in FRAMEWORKS:
        for training in TRAININGS:
            for arm in ARMS:
                words = part(training, arm, framework)
                skipped = (chosen.only and framework not in chosen.only) or (
                    chosen.training and training not in chosen.training
                )
                if skipped or chosen.kept:
                    found = find(NAME, words)
                else:
                    found = kept(NAME, words, lambda t=training, a=arm, f=framework: measure(t, a, f))
                if found is None:
                    continue
                results[training, arm, framework] = found
                if not skipped:
                    said = "" if right(training, arm, found) else "   NOT AS EXPECTED " + json.dumps(found)
                    print(
                        f"{framework:12} {training:16} {arm:8} {answer(found)} {found['seconds']:.0f} s{said}",
                        flush=True,
                    )
    if chosen.write:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
