"""The page of the scoreboard: results in, Markdown out. Nothing is measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from _knownlogs import section as known_logs
from _scored import PROBED

from whyspike.stats import poisson_upper, wilson

Result = dict[str, Any]
OTHER = ("healthy", "unexplained", "cannot-say", "error")  # answers that name no cause


@dataclass(frozen=True, kw_only=True)
class Board:
    """What was run."""

    commit: str
    dirty: bool
    date: str
    command: str
    planned: int
    results: tuple[Result, ...]

    def of(self, kind: str, arm: str = "") -> list[Result]:
        return [r for r in self.results if r["task"]["kind"] == kind and r["task"]["arm"] == arm]


@dataclass(frozen=True)
class Declared:
    """What a case says of itself before it is scored."""

    cause: str
    also_true: tuple[str, ...]
    harmless: bool


def declared() -> dict[str, Declared]:
    from whyspike.case import cases
    from whyspike.cause import find

    return {n: Declared(c.cause, tuple(c.also_true), find(c.cause).harmless) for n, c in cases().items()}


def answer_of(r: Result, case: Declared | None = None) -> str:
    """The column that an answer belongs to: its cause, or why there is none.

    In a twin a harmless cause leaves the status healthy, and counts as healthy.
    """
    if r.get("error"):
        return "error"
    harmless_case = case is not None and r["task"]["arm"] == "sick"
    if r["status"] == "healthy" and not (harmless_case and r["cause"]):
        return "healthy"
    return r["cause"] or r["status"]


def is_right(r: Result, case: Declared) -> bool:
    """Whether the first answer is the declared one; of a twin, that it is healthy.

    In the telling run of a harmless cause silence is right as well: chance does not strike in every run.
    """
    if r.get("error"):
        return False
    if r["task"]["arm"] == "twin":
        return r["status"] == "healthy"
    if case.harmless:
        return r["status"] == "healthy" and (r["cause"] == case.cause or not r["events"])
    return r["cause"] == case.cause


def undeclared(r: Result, case: Declared | None) -> list[str]:
    """Confirmed causes that nobody declared. In a twin, and in a healthy training, those that do no harm are none."""
    if r.get("error"):
        return []
    allowed = (case.cause, *case.also_true) if case and r["task"]["arm"] == "sick" else ()
    return [
        v["cause"]
        for v in r["verdicts"]
        if v["outcome"] == "confirmed"
        and v["cause"] not in allowed
        and (r["task"]["arm"] == "sick" or v["harm"] != "none")
    ]


# --------------------------------------------------------------------------- the page


def page(board: Board) -> str:
    known = declared()
    parts = [
        _head(board),
        _summary(board, known),
        _matrix(board, known),
        _wrong(board, known),
        _healthy(board),
        _faults(board),
        _cures(board),
        known_logs(),
        _how(),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(board: Board) -> str:
    lines = [
        "# Scoreboard",
        "",
        f"Every number on this page is written by `{board.command}`: commit `{board.commit[:12]}`"
        f"{' with changes that were not committed' if board.dirty else ''}, {board.date}.",
    ]
    left = board.planned - len(board.results)
    if left:
        lines += ["", f"**Not complete: {left} of {board.planned} runs have no result yet.**"]
    return "\n".join(lines)


def _share(k: int, n: int) -> str:
    if not n:
        return "not run"
    low, high = wilson(k, n)
    return f"{k} of {n} ({k / n:.1%}; 95 %: {low:.1%} to {high:.1%})"


def _summary(board: Board, known: dict[str, Declared]) -> str:
    sick, twins = board.of("case", "sick"), board.of("case", "twin")
    healthy, faults = board.of("healthy"), _all_faults(board)
    rows: list[tuple[str, str]] = []
    if sick or twins:
        right = [r for r in sick if is_right(r, known[r["task"]["name"]])]
        quiet = [r for r in twins if is_right(r, known[r["task"]["name"]])]
        beside = sum(
            not is_right(r, known[r["task"]["name"]])
            and answer_of(r, known[r["task"]["name"]]) in known[r["task"]["name"]].also_true
            for r in sick
        )
        wrong = [c for r in (*sick, *twins) for c in undeclared(r, known[r["task"]["name"]])]
        confirmed = sum(v["outcome"] == "confirmed" for r in (*sick, *twins) for v in r.get("verdicts", ()))
        also = f"; {beside} more with another cause that was declared as at work" if beside else ""
        rows += [
            ("Sick runs answered with their cause", _share(len(right), len(sick)) + also),
            ("Healthy twins answered as healthy", _share(len(quiet), len(twins))),
            ("Both together", _share(len(right) + len(quiet), len(sick) + len(twins))),
            ("Confirmed without being declared", f"{len(wrong)} of {confirmed} confirmations"),
            ("Runs that ended in an error", f"{sum(bool(r.get('error')) for r in board.results)}"),
        ]
        proofs = [r["parts"]["proof"] for r in sick if "parts" in r]
        if proofs:
            rows.append(
                ("Seconds per proof of a sick run", f"{median(proofs):.1f} in the median, {max(proofs):.1f} at most")
            )
    if healthy:
        rows += [
            ("Healthy trainings answered otherwise", _share(sum(not _is_quiet(r) for r in healthy), len(healthy))),
            ("Events in healthy trainings", _rate(healthy)),
        ]
    if faults:
        seen = [f for f in faults if f["visible"]]
        rows.append(("Visible injected faults found", _share(sum(f["hits"]["1"] for f in seen), len(seen))))
    cures = [c for r in sick for c in r.get("cures", ())]
    if cures:
        rows.append(
            ("Cures verified from scratch", f"{sum(c['verified'] for c in cures)} of {len(cures)} that were tried")
        )
    return "\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _is_quiet(r: Result) -> bool:
    return not r.get("error") and r["status"] == "healthy"


def _rate(runs: Sequence[Result]) -> str:
    steps = sum(r.get("steps", 0) for r in runs)
    n = sum(len(r.get("events", ())) for r in runs)
    if not steps:
        return "not run"
    return (
        f"{1e5 * n / steps:.1f} per 100,000 steps ({n} in {steps:,}; at most {1e5 * poisson_upper(n, steps):.1f} "
        "with 95 % confidence)"
    )


def _matrix(board: Board, known: dict[str, Declared]) -> str:
    runs = [*board.of("case", "sick"), *board.of("case", "twin")]
    if not runs:
        return ""
    cells: dict[tuple[str, str], Counter[str]] = {}
    for r in runs:
        name = r["task"]["name"]
        cells.setdefault((name, r["task"]["arm"]), Counter())[answer_of(r, known[name])] += 1
    given = {a for row in cells.values() for a in row}
    columns = sorted({known[n].cause for n, _ in cells} | (given - set(OTHER)))
    others = [o for o in OTHER if o in given or o == "healthy"]
    head = ["", *(str(k) for k in range(1, len(columns) + 1)), *others]
    number = {c: k for k, c in enumerate(columns, 1)}
    lines = [
        "## Answers",
        "",
        "Rows are cases and their twins, columns the answers. **Bold** is what was declared; *italic* is another cause "
        "that was declared as at work in the case. Columns: " + ", ".join(f"{k} {c}" for c, k in number.items()) + ".",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|:-:" * (len(head) - 1) + "|",
    ]
    for (name, arm), row in sorted(cells.items(), key=lambda item: (item[0][1] != "sick", item[0][0])):
        case = known[name]
        label = f"{number[case.cause]} {name}" if arm == "sick" else f"{name}, twin"
        shown = []
        for column in (*columns, *others):
            n = row[column]
            want = case.cause if arm == "sick" else "healthy"
            beside = arm == "sick" and column in case.also_true
            shown.append("·" if not n else f"**{n}**" if column == want else f"*{n}*" if beside else str(n))
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _wrong(board: Board, known: dict[str, Declared]) -> str:
    lines = []
    for r in (*board.of("case", "sick"), *board.of("case", "twin")):
        task, case = r["task"], known[r["task"]["name"]]
        settings = ", ".join(f"{k} x{v:.2f}" for k, v in task["vary"].items())
        at = f"{task['name']} {task['arm']}, seed {task['seed']}, {settings}"
        if not is_right(r, case):
            outcome = next((v["outcome"] for v in r.get("verdicts", ()) if v["cause"] == case.cause), "not suspected")
            beside = f" ({case.cause}: {outcome})" if task["arm"] == "sick" and not r.get("error") else ""
            lines.append(f"- {at}: {_cell(r.get('error') or r['sentence'])}{beside}")
        lines += [f"- {at}: {c} confirmed without being declared" for c in undeclared(r, case)]
    if not board.of("case", "sick"):
        return ""
    return "\n".join(["## What went wrong", "", *(lines or ["Nothing."])])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _healthy(board: Board) -> str:
    runs = board.of("healthy")
    if not runs:
        return ""
    steps = sum(r.get("steps", 0) for r in runs)
    answers = Counter(answer_of(r) for r in runs)
    explained = sum(r.get("status") == "healthy" and bool(r.get("events")) for r in runs)
    kinds = Counter(e["kind"] for r in runs for e in r.get("events", ()))
    lines = [
        "## Healthy trainings",
        "",
        f"{len(runs)} trainings, {steps:,} steps, each recorded and diagnosed with `rec.diagnose(prove=True)`: "
        + ", ".join(f"{n} {a}" for a, n in answers.most_common())
        + f". In {explained} of the healthy ones there were events, all explained as ordinary. {_rate(runs)}"
        + (f": {', '.join(f'{n} {k}' for k, n in kinds.most_common())}." if kinds else "."),
    ]
    for r in runs:
        if _is_quiet(r):
            continue
        moved = r.get("network")
        network = (
            f" The loss on {PROBED} fixed samples, measured at every step of the same training, rises to "
            f"{moved['largest']:.2f} times its level at most (step {moved['step']}), and is 10 % up in "
            f"{moved['above']} steps."
            if moved
            else ""
        )
        lines.append(f"- {r.get('setup', '')}: {_cell(r.get('error') or r['sentence'])}{network}")
    return "\n".join(lines)


def _all_faults(board: Board) -> list[Result]:
    return [f for r in board.of("fault") for f in r.get("faults", ())]


def _faults(board: Board) -> str:
    faults = _all_faults(board)
    if not faults:
        return ""
    seen = [f for f in faults if f["visible"]]
    words = {"1": "every step", "10": "every 10 steps", "0": "never"}
    kinds = sorted({f["kind"] for f in seen})
    lines = [
        "## Injected faults",
        "",
        "The trainings and faults of [the detector's page](benchmarks/detectors.md) at seeds of this commit: "
        f"{len(seen)} visible of {len(faults)}. Found, by how often the loss on fixed samples is measured:",
        "",
        "| measured | all | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for stride, word in words.items():
        by = [_k_of(f["hits"][stride] for f in seen if f["kind"] == kind) for kind in kinds]
        lines.append(f"| {word} | {_share(sum(f['hits'][stride] for f in seen), len(seen))} | " + " | ".join(by) + " |")
    return "\n".join(lines)


def _k_of(hits: Iterable[bool]) -> str:
    found = list(hits)
    return f"{sum(found)} of {len(found)}"


def _cures(board: Board) -> str:
    rows = []
    for r in board.of("case", "sick"):
        rows += [(r["task"]["name"], c["words"], c["verified"]) for c in r.get("cures", ())]
    if not rows:
        return ""
    lines = ["## Cures", "", "Trained from scratch, with and without, on three seeds of their own.", ""]
    lines += ["| case | cure | verified |", "|---|---|---|"]
    lines += [f"| {name} | {_cell(words)} | {'yes' if ok else 'no'} |" for name, words, ok in rows]
    return "\n".join(lines)


def _how() -> str:
    return """## How it is scored

Seeds and factors come from the hash of the commit: the last one that touched `src` or `benchmarks`. Learning rate,
number of samples, batch size and width of every case are multiplied by factors between 0.8 and 1.25; a twin has the
seed and the factors of its case. A run is right when its first answer is the declared cause, a twin when it is
healthy; the telling run of a harmless cause may also be silent. Causes in `also_true` were declared with the case, and
confirming them is no error. A run that ends in an error, or takes more than 240 s (with its cures 720 s), is wrong.

A proof is everything from the recorded run to the diagnosis, cures not counted. The cures are trained in the first run
of every case. Healthy trainings are drawn in `benchmarks/_healthy.py`: seven batch sizes from 4 to 256, SGD with and
without momentum and Adam, schedules, label noise, heavy tails, dropout, short last batches."""
