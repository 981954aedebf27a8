"""Arms of an experiment from scratch, for a script: fresh processes, as many at a time as there are cores for them.

Every arm that has ended is a file beside the runs, so that an interrupted experiment goes on with those that it has,
and a process that is lost takes no other arm with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike import launch
from whyspike.arm import cloudpickle
from whyspike.errors import NotReplayable
from whyspike.launch import Job, On

if TYPE_CHECKING:
    from whyspike.rerun import Trained
    from whyspike.script import Command
    from whyspike.seams import Intervention

SECONDS = "seconds.json"  # in the store: how long each command ran
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
        on: what hands the arms out: joblib on this machine, or ray on a cluster.
        workers: processes at a time; by default as many as the cores allow.
    """

    command: Command
    cwd: Path
    store: Path
    seconds: float
    threads: int | None = None
    on: On = "joblib"
    workers: int | None = None

    @cached_property
    def at_once(self) -> int:
        """Processes at a time."""
        return self.workers or launch.at_once(self.on, self.threads)

    def waiting(self, wanted: Sequence[Wanted]) -> int:
        """How many of the arms are not there yet."""
        return sum(self._kept(self._place(w)) is None for w in wanted)

    def expected_s(self, wanted: Sequence[Wanted]) -> float:
        """How long the arms that are not there yet will take, about."""
        return -(-self.waiting(wanted) // self.at_once) * self.seconds

    def results(self, wanted: Sequence[Wanted], progress: Progress | None = None) -> list[dict[str, Any]]:
        """What every arm gave, in their order. Those that are there already are not run again.

        Raises:
            NotReplayable: an arm failed; the others are kept.
        """
        places = [self._place(w) for w in wanted]
        made = {k: found for k, place in enumerate(places) if (found := self._kept(place)) is not None}
        missing = [k for k in range(len(wanted)) if k not in made]
        if progress:
            kept = f", {len(made)} of them are there already" if made else ""
            expected = self.expected_s(wanted)
            progress(f"running the script {len(wanted)} times{kept}: about {expected:.0f} s", 0.0)
        self.store.mkdir(parents=True, exist_ok=True)
        jobs = [self._job(wanted[k]) for k in missing]
        for number, result in launch.submit(jobs, self.on, self.at_once, self.threads):
            k = missing[number]
            made[k] = result
            if "error" not in result:  # else it is tried again the next time
                _write(places[k], result)
            if progress:
                progress(f"running the script again: {wanted[k].words}", len(made) / len(wanted))
        failed = next(((w, made[k]["error"]) for k, w in enumerate(wanted) if "error" in made[k]), None)
        if failed is not None:
            raise NotReplayable(f"the script with {failed[0].words} gave no result: {failed[1]}")
        return [made[k] for k in range(len(wanted))]

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

    def remember(self) -> None:
        """Keep how long the script ran, for what is said the next time."""
        self.store.mkdir(parents=True, exist_ok=True)
        _write(self.store / SECONDS, {**_seconds_in(self.store), self.command.words: self.seconds})

    @staticmethod
    def remembered(store: Path, command: Command) -> float | None:
        """How long the script ran the last time; None where that is not known."""
        found = _seconds_in(store).get(command.words)
        return found if isinstance(found, float) else None

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

    def _kept(self, place: Path) -> dict[str, Any] | None:
        try:
            return json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or damaged: it is run again
            return None

    def _job(self, arm: Wanted) -> Job:
        """What another process needs to know of an arm.

        Raises:
            NotReplayable: its change cannot be handed to another process.
        """
        try:
            packed = cloudpickle().dumps(arm.intervention).hex()
        except Exception as error:
            raise NotReplayable(
                f"the change of {arm.words} cannot be handed to another process ({type(error).__name__}: {error})"
            ) from error
        return {**self.job, "seed": arm.seed, "events": arm.events, "stop": arm.stop, "intervention": packed}

    @property
    def job(self) -> Job:
        """What every process needs to know of the script."""
        target, module = self.command.target, self.command.module
        return {
            "target": target if module else str((self.cwd / target).resolve()),
            "arguments": self.command.arguments,
            "module": module,
            "path": [str(self.cwd)] if module else [],
            "cwd": str(self.cwd),
            "threads": self.threads,
        }


def _write(place: Path, result: dict[str, Any]) -> None:
    """All or nothing."""
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, place)


def _seconds_in(store: Path) -> dict[str, Any]:
    try:
        found = json.loads((store / SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
