"""The scoreboard: every case and its twin against every cause, healthy trainings, injected faults.

    ./dev bench scoreboard                # everything; writes docs/scoreboard.md (under an hour on two cores)
    ./dev bench scoreboard --quick        # a few of each; prints the page and writes nothing
    ./dev bench scoreboard --only CASE    # one case (or `healthy`, or `faults`); prints the page
    ./dev bench scoreboard --report       # docs/scoreboard.md again from what has been run, without running

Seeds and factors are drawn from the hash of the last commit that touched src or benchmarks, so that nobody can have
looked at them before. Every result is kept in .cache/scoreboard: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _scored import CACHE, FACTORS, RANGE, ROOT, STARTS, Task, draw, work
from _scorepage import Board, page

RUNS = 130  # of sick cases at least, and of twins: the 95 % interval of 95 % right is then 7 points wide
HEALTHY = 200
FAULT_SEEDS = (
    12  # for each of the six trainings of benchmarks/detectors.py, six faults each: the 95 % interval is 9 points wide
)
PAGE = ROOT / "docs" / "scoreboard.md"


def seed_of(commit: str, *what: object) -> int:
    return 10_000 + int(draw(commit, "seed", *what).integers(1_000_000))


def factors_of(commit: str, name: str, replicate: int) -> dict[str, float]:
    rng = draw(commit, "factors", name, replicate)
    low, high = map(math.log, RANGE)
    return {name: round(math.exp(rng.uniform(low, high)), 3) for name in FACTORS}


def plan(commit: str, *, quick: bool = False, only: str | None = None) -> list[Task]:
    """All runs of a commit; every replicate of all cases before the next one."""
    import detectors

    from whyspike.case import cases

    names = list(cases())
    replicates = 1 if quick else math.ceil(RUNS / len(names))
    tasks = [
        Task(
            kind="case",
            name=name,
            arm=arm,
            replicate=k,
            seed=seed_of(commit, name, k),
            vary=factors_of(commit, name, k),
            cures=arm == "sick" and k == 0,
        )
        for k in range(replicates)
        for name in names
        if only in (None, name)
        for arm in ("sick", "twin")
    ]
    if only in (None, "healthy"):
        seed = seed_of(commit, "healthy")
        numbers = range(0, HEALTHY, 11 if quick else 1)  # 11: every task and optimizer in turn
        tasks += [Task(kind="healthy", name="training", replicate=k, seed=seed) for k in numbers]
    if only in (None, "faults"):
        tasks += [
            Task(kind="fault", name=setup.name, replicate=k, seed=seed_of(commit, "fault", setup.name, k))
            for k in range(1 if quick else FAULT_SEEDS)
            for setup in detectors.FAULTY
        ]
    return tasks


def run(tasks: list[Task], jobs: int) -> None:
    """Run what has no result yet. A process that dies takes its run with it, and the others go on."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    CACHE.mkdir(parents=True, exist_ok=True)
    for _ in range(STARTS * len(tasks)):
        left = [t for t in tasks if t.result() is None]
        if not left:
            return
        print(f"{len(left)} of {len(tasks)} runs to do", file=sys.stderr)
        try:
            Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=2 * jobs)(delayed(work)(t) for t in left)
        except TerminatedWorkerError:
            print("a process died; the others go on", file=sys.stderr)


def commit_of_sources() -> tuple[str, bool]:
    """The last commit that touched what is scored, and whether there are changes beside it."""

    def git(*arguments: str) -> str:
        made = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return made.stdout.strip()

    return git("log", "-1", "--format=%H", "--", "src", "benchmarks"), bool(
        git("status", "--porcelain", "--", "src", "benchmarks")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one run of each case, a tenth of the healthy trainings")
    parser.add_argument("--only", metavar="CASE", help="one case, or `healthy`, or `faults`")
    parser.add_argument("--report", action="store_true", help="write the page from what has been run")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: exact replays, and one core for one process
    commit, dirty = commit_of_sources()
    tasks = plan(commit, quick=chosen.quick, only=chosen.only)
    if not tasks:
        parser.error(f"there is no case named {chosen.only!r}; `whyspike demo --list` shows all of them")
    if not chosen.report:
        run(tasks, chosen.jobs)
    board = Board(
        commit=commit,
        dirty=dirty,
        date=datetime.now(UTC).date().isoformat(),
        command=f"./dev bench scoreboard{' --quick' if chosen.quick else ''}"
        + (f" --only {chosen.only}" if chosen.only else ""),
        planned=len(tasks),
        results=tuple(r for t in tasks if (r := t.result()) is not None),
    )
    text = page(board)
    if chosen.quick or chosen.only:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
