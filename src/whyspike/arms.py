"""Arms of an experiment from scratch, for a script: fresh processes, as many at a time as there are cores for them.

Every arm that has ended is a file beside the runs, so that an interrupted experiment goes on with those that it has,
and a process that is lost takes no other arm with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike.arm import cloudpickle
from whyspike.errors import NotReplayable

if TYPE_CHECKING:
    from whyspike.rerun import Trained
    from whyspike.script import Command
    from whyspike.seams import Intervention

LEFT_OUT = frozenset({"whyspike-runs", "__pycache__", ".git", ".venv", "venv"})
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One arm: the script with an intervention.

    Args:
        seed: 0 for the script's own; any other number shifts all seeds that it sets.
        events: the steps at which the intervention acts, where it acts at events.
        stop: updates after which it ends; None for all of them.
    """

    intervention: Intervention
    seed: int = 0
    events: tuple[int, ...] = ()
    stop: int | None = None

    @property
    def words(self) -> str:
        return f"{self.intervention.words}{f', seed {self.seed}' if self.seed else ''}"


@dataclass(frozen=True, kw_only=True)
class ScriptSource:
    """A script that can be run again.

    Args:
        cwd: the folder in which it was run.
        store: where the arms are kept, `place_for(…)` for one.
        seconds: how long it ran.
        threads: of torch in one arm; None leaves it to the script.
        workers: processes at a time; by default as many as the cores allow.
    """

    command: Command
    cwd: Path
    store: Path
    seconds: float
    threads: int | None = None
    workers: int | None = None

    @property
    def at_once(self) -> int:
        """Processes at a time."""
        return self.workers or max(1, (os.cpu_count() or 1) // max(1, self.threads or 1))

    def expected_s(self, wanted: Sequence[Wanted]) -> float:
        """How long the arms that are not there yet will take, about."""
        waiting = sum(not self._place(w).is_file() for w in wanted)
        return -(-waiting // self.at_once) * self.seconds

    def results(self, wanted: Sequence[Wanted], progress: Progress | None = None) -> list[dict[str, Any]]:
        """What every arm gave, in their order. Those that are there already are not run again.

        Raises:
            NotReplayable: an arm failed; the others are kept.
        """
        from joblib import Parallel, delayed

        if progress:
            progress(f"running the script {len(wanted)} times, about {self.expected_s(wanted):.0f} s", 0.0)
        done: list[int] = []

        def one(arm: Wanted) -> dict[str, Any]:
            made = self._result(arm)
            done.append(1)
            if progress:
                progress(f"running the script again: {arm.words}", len(done) / len(wanted))
            return made

        # The threads wait for processes.
        made: Any = Parallel(n_jobs=self.at_once, backend="threading")(delayed(one)(w) for w in wanted)
        failed = next(((w, r["error"]) for w, r in zip(wanted, made, strict=True) if "error" in r), None)
        if failed is not None:
            raise NotReplayable(f"the script with {failed[0].words} gave no result: {failed[1]}")
        return list(made)

    def train(self, wanted: Sequence[Wanted], progress: Progress | None = None) -> list[Trained]:
        """The arms as trainings from scratch.

        Raises:
            NotReplayable: as `results`.
        """
        from whyspike.rerun import Trained
        from whyspike.types import Series

        none = Series(np.empty(0, dtype=np.int64), np.empty(0))
        return [
            Trained(
                seed=w.seed,
                words=w.intervention.words,
                loss=np.array([float(v) for v in r["loss"]]),
                n_samples=np.array(r["n_samples"]),
                batch_size=r["batch_size"],
                state=none,
                final_probe=float(r["final_probe"]),
            )
            for w, r in zip(wanted, self.results(wanted, progress), strict=True)
        ]

    @staticmethod
    def place_for(run: Path, command: Command) -> Path:
        """Where the arms of a script are kept: beside its runs, so that the next attempt finds them."""
        return run.parent / f".{command.name}-arms"

    # ------------------------------------------------------------------ one of them

    def _place(self, arm: Wanted) -> Path:
        change = arm.intervention
        acts = [type(change).__qualname__, change.words, str(getattr(change, "where", ""))]
        what = [self.command.words, str(self.cwd), self._code(), *acts, arm.seed, arm.events, arm.stop]
        return self.store / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.json"

    def _code(self) -> str:
        """A checksum of the script and of what lies beside it: after an edit, nothing that was run before counts."""
        folder = self.cwd if self.command.module else (self.cwd / self.command.target).resolve().parent
        made = hashlib.sha256()
        for file in sorted(folder.glob("*.py")):
            made.update(file.read_bytes())
        return made.hexdigest()

    def _result(self, arm: Wanted) -> dict[str, Any]:
        place = self._place(arm)
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
        made = self._run(arm, place)
        if "error" in made:
            place.unlink(missing_ok=True)  # it is tried again the next time
        return made

    def _run(self, arm: Wanted, place: Path) -> dict[str, Any]:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            packed = cloudpickle().dumps(arm.intervention).hex()
        except Exception as error:
            return {"error": f"its change cannot be handed to another process ({type(error).__name__}: {error})"}
        with tempfile.TemporaryDirectory(prefix="whyspike-arm-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch) / "run"
            self._furnish(folder)
            target = self.command.target
            job = {
                "target": target if self.command.module else str((self.cwd / target).resolve()),
                "arguments": self.command.arguments,
                "module": self.command.module,
                "path": [str(self.cwd)] if self.command.module else [],
                "folder": str(folder),
                "seed": arm.seed,
                "events": arm.events,
                "stop": arm.stop,
                "threads": self.threads,
                "intervention": packed,
                "result": str(place.resolve()),
            }
            file = Path(scratch) / "job.json"
            file.write_text(json.dumps(job), encoding="utf-8")
            environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONSAFEPATH": "", "WHYSPIKE_DISABLE": ""}
            made = subprocess.run(  # noqa: S603  this Python, and the script that was run before
                [sys.executable, "-m", "whyspike.arm", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                check=False,
            )
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
        said = made.stderr.strip().splitlines()
        return {"error": f"its process ended with {made.returncode} ({said[-1] if said else 'no message'})"}

    def _furnish(self, folder: Path) -> None:
        """The scratch folder: links to what lies in the script's own, so that it finds what it reads."""
        folder.mkdir(parents=True)
        for entry in self.cwd.iterdir():
            if entry.name not in LEFT_OUT:
                (folder / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
