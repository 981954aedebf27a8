"""One run of the scoreboard, from its task to its result: trained, diagnosed, and written to the cache.

A task is a case or its twin at one seed and one set of factors, one healthy training, or one training with injected
faults. Its result is kept under a key made of the task and of the sources that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "whyspike"
CACHE = ROOT / ".cache" / "scoreboard"
FACTORS = ("lr", "n", "batch_size", "width")
RANGE = (0.8, 1.25)  # of every factor, drawn evenly in its logarithm
CPU_S, WALL_S = 240, 1200  # a run that takes longer counts as wrong
CURES = 3  # times as long where the cures are trained, too: some dozen trainings more
STARTS = 3  # a run that ended its process so often, without a result, counts as crashed
# What no result depends on: how it is shown.
IRRELEVANT = ("reports/", "cli.py", "output.py", "targets.py", "catalogue_docs.py", "preflight.py", "__main__.py")
PROBED = 512  # samples of the healthy suite's own measurement of the network, made where an answer is wrong
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run to score."""

    kind: str  # "case", "healthy" or "fault"
    name: str  # of the case, or of the kind of training
    arm: str = ""  # "sick" or "twin" of a case
    replicate: int
    seed: int
    vary: dict[str, float] = field(default_factory=dict)
    cures: bool = False  # whether the cures are trained, too

    @property
    def title(self) -> str:
        return " ".join(p for p in (self.kind if self.kind != "case" else "", self.name, self.arm) if p)

    @property
    def key(self) -> str:
        stated = json.dumps(asdict(self), sort_keys=True) + digest(self.name if self.kind == "case" else "")
        return hashlib.sha256(stated.encode()).hexdigest()[:24]

    @property
    def path(self) -> Path:
        return CACHE / f"{self.key}.json"

    def result(self) -> Result | None:
        """What was found, if it was."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def draw(commit: str, *what: object) -> np.random.Generator:
    """The generator of one run: nobody could look at its numbers before the commit existed."""
    text = " ".join(map(str, (commit, *what)))
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def digest(case: str) -> str:
    """A hash of the sources that a run depends on: all but the other cases and what only shows results."""
    own = f"cases/{case.replace('-', '_')}.py"
    found = hashlib.sha256()
    files = [(p.relative_to(SOURCE).as_posix(), p) for p in SOURCE.rglob("*.py")]
    files += [(p.name, p) for p in Path(__file__).parent.glob("*.py") if p.stem in ("_healthy", "_scored", "detectors")]
    for name, path in sorted(files):
        if name.startswith(IRRELEVANT) or (name.startswith("cases/") and not name.startswith(("cases/_", own))):
            continue
        found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


# --------------------------------------------------------------------------- in a process of its own


class TooLong(BaseException):
    """A run took more time than it may. No Exception, so that nothing on the way takes it for one of its own."""


def work(task: Task) -> None:
    """Score a task, and write its result; what it raises is a result, too."""
    import torch

    torch.set_num_threads(1)
    if sys.platform == "linux":  # joblib leaves a start method of its own behind, which a loader's workers cannot use
        multiprocessing.set_start_method("fork", force=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    starts = task.path.with_suffix(".starts")
    n = int(starts.read_text()) if starts.exists() else 0
    result: Result
    if n >= STARTS:
        result = {"error": f"the process ended {n} times before there was a result"}
    else:
        starts.write_text(str(n + 1))
        began = time.monotonic()
        most = CURES if task.cures else 1
        try:
            _limit(CPU_S * most, WALL_S * most)
            result = SCORERS[task.kind](task)
        except TooLong:
            result = {"error": f"it took more than {CPU_S * most} s of computing or {WALL_S * most} s"}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            result = {"error": f"{type(error).__name__}: {error} ({place})", "traceback": traceback.format_exc()}
        finally:
            _limit(0, 0)
        result["seconds"] = round(time.monotonic() - began, 2)
    result["task"] = asdict(task)
    partial = task.path.with_suffix(".part")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(task.path)
    starts.unlink(missing_ok=True)
    said = result.get("error") or f"{result.get('status', '')} {result.get('cause') or ''}".strip()
    print(f"{task.title} {task.replicate}: {said} ({result.get('seconds', 0):.0f} s)", file=sys.stderr, flush=True)
    _forget()


def _limit(cpu: float, wall: float) -> None:
    if not hasattr(signal, "setitimer"):
        return

    def stop(*_: object) -> None:
        raise TooLong

    for which, number, seconds in (
        (signal.ITIMER_PROF, signal.SIGPROF, cpu),
        (signal.ITIMER_REAL, signal.SIGALRM, wall),
    ):
        signal.signal(number, stop)
        signal.setitimer(which, seconds)


def _forget() -> None:
    """Let go of the data sets that cases keep: every factor makes others."""
    for name, module in list(sys.modules.items()):
        if name.startswith("whyspike.cases."):
            for thing in vars(module).values():
                if hasattr(thing, "cache_clear"):
                    thing.cache_clear()


class Clock:
    """How long training, proof and cures took, told from the words of the progress."""

    def __init__(self) -> None:
        self.part, self.since = "train", time.perf_counter()
        self.seconds = dict.fromkeys(("train", "proof", "cures"), 0.0)

    def __call__(self, words: str, done: float) -> None:
        part = self.part
        if words.startswith("looking for events"):
            part = "proof"
        elif words.startswith("training from scratch"):
            part = "cures"
        self.turn(part)

    def turn(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now


def _score_case(task: Task) -> Result:
    """A case or its twin through all stages."""
    from whyspike.case import Vary, find_case
    from whyspike.pipeline import take

    case, clock = find_case(task.name), Clock()
    build = case.sick if task.arm == "sick" else case.healthy
    made = take(build, seed=task.seed, vary=Vary(**task.vary), verify_cures=task.cures, progress=clock)
    clock.turn("")
    return {**_said(made), "parts": clock.seconds, "cures": _cures(made) if task.cures else []}


def _said(made: Any) -> Result:
    return {
        "steps": made.run.steps,
        "status": made.answer.status,
        "cause": made.answer.cause,
        "harm": made.answer.harm,
        "sentence": made.answer.sentence,
        "events": [
            {"kind": e.kind, "step": e.step, "last_step": e.last_step, "reported": e.reported, "state": e.state}
            for e in made.events
        ],
        "verdicts": [{"cause": v.cause, "outcome": v.outcome, "harm": v.harm} for v in made.verdicts],
    }


def _cures(made: Any) -> list[Result]:
    """The answer's cures that were trained; not those that are shown only because people try them."""
    from whyspike.cause import Observation, catalogue

    if made.answer.cause is None or not made.verdicts:
        return []
    known = catalogue()[made.answer.cause].cures(Observation(run=made.record, events=made.events))
    fails = {c.cure.words for c in known if c.expected == "fails"}
    tried = [c for c in made.verdicts[0].cures if c.verified is not None and c.words not in fails]
    return [{"cause": made.answer.cause, "words": c.words, "verified": c.verified} for c in tried]


def _score_healthy(task: Task) -> Result:
    """A healthy training, recorded and diagnosed as its owner would."""
    import _healthy

    import whyspike
    from whyspike.rerun import train_recorded

    setup, clock = _healthy.setup(task.replicate, task.seed), Clock()
    made = _healthy.training(setup)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with whyspike.watch(
            made.model, made.optimizer, loss_fn=made.loss_fn, scheduler=made.scheduler, path=path
        ) as rec:
            train_recorded(made, rec)
        clock.turn("proof")
        found = rec.diagnose(prove=True)
    clock.turn("")
    out = {**_said(found), "parts": clock.seconds, "setup": setup.words()}
    if found.answer.status != "healthy":
        out["network"] = network_moved(_healthy.training(setup))
    return out


def network_moved(training: Any) -> Result:
    """The loss on fixed samples at every step of a training: its largest rise, and how often it is up by a tenth."""
    import torch

    tensors = training.loader.dataset.tensors
    rows = np.random.default_rng(0).permutation(len(tensors[0]))[:PROBED]
    probe = tuple(t[torch.from_numpy(rows)] for t in tensors)
    losses = []
    for _ in range(training.epochs):
        for batch in training.loader:
            training.optimizer.zero_grad()
            training.loss_fn(training.model, batch).backward()
            if training.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(training.model.parameters(), training.clip_grad_norm)
            training.optimizer.step()
            if training.scheduler is not None:
                training.scheduler.step()
            training.model.eval()
            with torch.no_grad():
                losses.append(float(training.loss_fn(training.model, probe)))
            training.model.train()
    if min(losses) <= 0:
        return {}
    x = np.array(losses)
    rise = x[64:] / np.array([np.median(x[k - 64 : k]) for k in range(64, len(x))])
    return {"largest": float(rise.max()), "step": int(rise.argmax()) + 64, "above": int((rise >= 1.1).sum())}


def _score_fault(task: Task) -> Result:
    """A training with known faults: which of the visible ones the detector finds, by how often it has a probe."""
    import detectors

    setup = next(s for s in detectors.FAULTY if s.name == task.name)
    made = detectors.train(setup, task.seed, detectors.faults_for(setup, task.seed))
    onsets = {stride: detectors.ours(made, stride=stride) for stride in (1, 10, 0)}
    found = []
    for step, kind, visible in made.faults:
        hits = {str(k): any(-1 <= o - step <= detectors.HIT_WITHIN for o in at) for k, at in onsets.items()}
        found.append({"kind": kind, "step": step, "visible": visible, "hits": hits})
    return {"status": "", "faults": found}


SCORERS: dict[str, Callable[[Task], Result]] = {
    "case": _score_case,
    "healthy": _score_healthy,
    "fault": _score_fault,
}
