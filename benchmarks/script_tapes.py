"""How far the tape carries: every script of tests/scripts under `whyspike run` and under `whyspike prove`.

    python benchmarks/script_tapes.py                     # a table; about 15 minutes on two cores
    python benchmarks/script_tapes.py --only lr_too_high  # one script
    python benchmarks/script_tapes.py --write             # docs/benchmarks/scripts.md

`run` records one tape for each size of a batch, `prove` one for every step. A stretch of a run (the steps after a
snapshot) is carried where an unchanged replay of its tape is bitwise the record, losses and weights. The weights at the
end are compared with those that plain python gives. Times are of the processor, so that a busy machine changes none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from _kept import ROOT, kept

SCRIPTS = ROOT / "tests" / "scripts"
REPORT = ROOT / "docs" / "benchmarks" / "scripts.md"
TARGET = 0.75  # of the scripts are carried
SHARE, FREE_S = 0.25, 30.0  # of the training's time, and what is allowed in any case, for each of up to four events
MOST_EVENTS = 4


def one(script: str, mode: str) -> dict[str, Any]:
    """Run a script in this process, in the current folder, and say what came of it."""
    from whyspike.script import Command
    from whyspike.scriptrun import run_script

    begun, restore = process_time(), os.dup(1)
    os.dup2(2, 1)  # what the script prints goes elsewhere
    made = run_script(Command(script), closely=mode == "prove")
    sys.stdout.flush()
    os.dup2(restore, 1)
    trained = made.processor_s
    return {
        "code": made.ended.code,
        "trained_s": trained,
        "proof_s": process_time() - begun - trained,
        "carried": list(made.carried[0]) if made.carried else [0, 0],
        "events": len(made.diagnoses[0].events) if made.diagnoses else 0,
        "status": made.diagnoses[0].answer.status if made.diagnoses else "nothing recorded",
        "cause": made.diagnoses[0].answer.cause if made.diagnoses else None,
        "outcome": made.diagnoses[0].verdicts[0].outcome if made.diagnoses and made.diagnoses[0].verdicts else None,
        "missing": list(made.diagnoses[0].missing) if made.diagnoses else [],
    }


def measure(name: str) -> dict[str, Any]:
    """Plain, then under whyspike in both ways, each in a process and a folder of its own."""
    script, environment = str(SCRIPTS / f"{name}.py"), {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {mode: Path(scratch) / mode for mode in ("plain", "run", "prove")}
        found: dict[str, Any] = {}
        for mode, folder in folders.items():
            folder.mkdir()
            command = [sys.executable, script]
            if mode != "plain":
                command = [sys.executable, os.path.abspath(__file__), "--one", script, "--mode", mode]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                return {"failed": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
            if mode != "plain":
                found[mode] = json.loads(done.stdout.splitlines()[-1])
        for mode in ("run", "prove"):
            found[mode]["bitwise"] = _same(folders["plain"] / "model.pt", folders[mode] / "model.pt")
    return found


def _same(one: Path, other: Path) -> bool:
    import torch

    def tensors(value: Any, name: str = "") -> dict[str, Any]:
        if isinstance(value, torch.Tensor):
            return {name: value}
        return {k: t for key, part in value.items() for k, t in tensors(part, f"{name}/{key}").items()}

    a, b = tensors(torch.load(one)), tensors(torch.load(other))
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)


def carries(row: dict[str, Any], mode: str) -> bool:
    """Whether most stretches of the run are bitwise: those of the events are among them, or others like them."""
    good, whole = row[mode]["carried"]
    return whole > 0 and good / whole > 0.5


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| script | weights as under python | carried by `run` | by `prove` | answer of `run` | of `prove` | verdict "
        "| training, s | proof / training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed']} | | | | | | | |")
            continue
        run, prove = row["run"], row["prove"]
        bitwise = "yes" if run["bitwise"] and prove["bitwise"] else "**no**"
        cells = [
            name,
            bitwise,
            *("{} of {}".format(*r["carried"]) for r in (run, prove)),
            *(r["cause"] or r["status"] for r in (run, prove)),
            prove["outcome"] or "",
            f"{run['trained_s']:.1f}",
            f"{run['proof_s'] / run['trained_s']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    whole = [r for r in rows.values() if "failed" not in r]
    counted = {mode: sum(carries(r, mode) for r in whole) for mode in ("run", "prove")}
    n = len(whole)
    dear = [
        name
        for name, r in rows.items()
        if "failed" not in r
        and r["run"]["proof_s"]
        > max(FREE_S, SHARE * r["run"]["trained_s"]) * max(1, min(MOST_EVENTS, r["run"]["events"]))
    ]
    lines += [
        "",
        f"Carried: {counted['run']} of {n} with a tape for each size ({counted['run'] / n:.0%}), {counted['prove']} of "
        f"{n} with a tape for every step ({counted['prove'] / n:.0%}); the target is {TARGET:.0%}.",
        f"Weights bitwise those of python: {sum(r['run']['bitwise'] and r['prove']['bitwise'] for r in whole)} of {n}.",
        "A proof may take a quarter of the training, half a minute in any case, for each of up to four events"
        + (f"; longer took {', '.join(dear)}." if dear else "; none took longer."),
    ]
    said = [(name, m) for name, r in rows.items() if "failed" not in r for m in r["prove"]["missing"] if "tape" in m]
    if said:
        lines += ["", "Where the tape is not the script, under `prove`:", ""]
        lines += [f"- {name}: {words}" for name, words in said]
    return "\n".join(lines)


def _digest(name: str) -> str:
    return hashlib.sha256((SCRIPTS / f"{name}.py").read_bytes()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one script, without .py")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(one(options.one, options.mode)))
        return
    names = [options.only] if options.only else sorted(p.stem for p in SCRIPTS.glob("*.py"))
    # A script that is edited is measured anew.
    rows = {name: kept("script_tapes", f"{name} {_digest(name)}", lambda name=name: measure(name)) for name in names}
    text = table(rows)
    print(text)
    if options.write:
        head = (
            "# Unchanged scripts: what the tape carries\n\nWritten by `python benchmarks/script_tapes.py --write`. A "
            "script is counted as carried where more than half of its stretches are. The scripts were written by the "
            "authors of the tape, so this is no sample of what people write.\n"
        )
        REPORT.write_text(f"{head}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
