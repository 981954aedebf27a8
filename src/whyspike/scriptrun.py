"""`whyspike run`: a script unchanged, recorded while it runs, diagnosed and proven when it has ended."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.errors import WhySpikeError
from whyspike.script import Command, Ended, run

if TYPE_CHECKING:
    from whyspike.arms import ScriptSource
    from whyspike.launch import On
    from whyspike.output import Format
    from whyspike.record import Recorder
    from whyspike.scriptwatch import ScriptWatch
    from whyspike.types import Diagnosis

Progress = Callable[[str, float], None]
OTHERS = {"tensorflow": "TensorFlow", "jax": "JAX", "keras": "Keras", "mxnet": "MXNet", "paddle": "Paddle"}


@dataclass(frozen=True)
class Outcome:
    """A script that has ended, and what it left: diagnoses, or the reason why there is none."""

    ended: Ended
    diagnoses: tuple[Diagnosis, ...] = ()
    folders: tuple[Path, ...] = ()
    carried: tuple[tuple[int, int], ...] = ()  # of each: stretches that its tape carries bit by bit, and all of them
    seconds: float = 0.0  # that the script ran
    processor_s: float = 0.0  # of this process meanwhile
    notes: tuple[str, ...] = ()  # in words, what a reader must know beside the diagnoses


def run_script(
    command: Command,
    *,
    loss: str | None = None,
    prove: bool = True,
    closely: bool = False,
    folder: Path | None = None,
    rerun: bool = False,
    budget: float | None = None,
    on: On = "joblib",
) -> Outcome:
    """Run a script as python would, record it, and diagnose it when it has ended.

    Args:
        loss: the name of the variable that `backward()` is called on, where there are several losses.
        prove: replay the steps around the events, with one thing changed.
        closely: record at fixed strides, whatever it costs.
        folder: where the record goes; `whyspike-runs/<script>-<time>` here without it.
        rerun: also run the script again, with one thing changed: where its tape cannot be trusted, and to verify cures.
        budget: minutes, the script's own run among them; what would take longer is not done.
        on: what hands out the runs: joblib on this machine, or ray on a cluster.

    Raises:
        BadTraining: there is no such script.
    """
    if sys.platform != "win32":
        atexit.register(_end_by_signal)  # the first one that is registered is the last one that is called
    place = (
        folder.absolute() if folder else Path.cwd() / "whyspike-runs" / f"{command.name}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    found: list[tuple[Any, ScriptWatch]] = []
    facts: dict[str, object] = {"command": [*(("-m",) if command.module else ()), command.target, *command.arguments]}
    facts["cwd"] = str(Path.cwd())

    def on_torch() -> None:
        from whyspike.hooks import Hooks
        from whyspike.scriptwatch import ScriptWatch

        watching = ScriptWatch(
            lambda number: place if not number else place.with_name(f"{place.name}-{number + 1}"),
            name=command.name,
            loss=loss,
            closely=closely,
            facts=facts,
        )
        found.append((Hooks(watching), watching))

    if rerun:
        _first_word(place, command)
    begun, processor = time.monotonic(), time.process_time()
    ended = run(command, on_torch=on_torch)
    seconds, processor_s = time.monotonic() - begun, time.process_time() - processor
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the script's own has had its time
    sys.stdout.flush()
    if not found:
        return Outcome(ended, notes=(_no_torch(command),))
    hooks, watching = found[0]
    watching.finish("end" if ended.raised is None else type(ended.raised).__name__)
    hooks.remove()
    from whyspike.output import Progress as Shown

    left = None if budget is None else max(0.0, budget * 60 - seconds)
    asked = _Asked(command, prove and not ended.interrupted, loss, rerun, left, on)
    with Shown() as progress:
        made = _concluded(asked, ended, watching, seconds, progress)
        return replace(made, seconds=seconds, processor_s=processor_s)


@dataclass(frozen=True)
class _Asked:
    """What is to be done once the script has ended."""

    command: Command
    prove: bool
    loss: str | None
    rerun: bool
    seconds: float | None  # the most to spend; None for any number
    on: On


def _concluded(asked: _Asked, ended: Ended, watching: ScriptWatch, seconds: float, progress: Progress) -> Outcome:
    from whyspike.pipeline import diagnose_recorder

    notes = []
    if watching.error is not None:
        error = watching.error
        notes.append(f"recording stopped after an error of whyspike's own ({type(error).__name__}: {error})")
    recorded = [(one, one.recorder.path) for one in watching.watched if one.recorder.path is not None]
    if not recorded:
        notes.append(_no_update(asked.command, watching, asked.loss))
        return Outcome(ended, notes=tuple(notes))
    first, folder = recorded[0]
    steps = f"after {first.recorder._step} updates; what was recorded is in {folder}"
    if ended.interrupted:
        notes.append(f"stopped {steps}")
    elif ended.raised is not None:
        notes.append(f"the script ended with an error {steps}")
    made = []
    for one, path in recorded:
        if asked.rerun and asked.prove:
            made.append(_run_again(asked, one.recorder, path, seconds, progress))
        else:
            made.append(diagnose_recorder(one.recorder, prove=asked.prove, most_s=asked.seconds, progress=progress))
    undecided = any(d.answer.status in ("unexplained", "cannot-say") for d in made)
    if asked.prove and not asked.rerun and undecided and not carried(first.recorder)[0]:
        notes.append(f"what no replay could decide, running the script again may: whyspike prove {folder}")
    if len(recorded) > 1:
        named = ", ".join(f"{path.name}: {' + '.join(sorted(one.names)) or '?'}" for one, path in recorded)
        notes.append(f"{len(recorded)} optimizers were followed apart ({named}); --loss NAME chooses one")
    folders = tuple(path for _, path in recorded)
    tapes = tuple(carried(one.recorder) for one, _ in recorded)
    return Outcome(ended, tuple(made), folders, tapes, notes=tuple(notes))


def _run_again(asked: _Asked, recorder: Recorder, folder: Path, seconds: float, progress: Progress) -> Diagnosis:
    """Diagnose, run the script again where a replay cannot prove it, and verify the cures."""
    import torch

    from whyspike import runfolder
    from whyspike.arms import ScriptSource
    from whyspike.output import say
    from whyspike.pipeline import diagnose_recorder, verified
    from whyspike.scriptexperiment import trials_of

    begun = time.monotonic()
    source = ScriptSource(
        command=asked.command,
        cwd=Path(str(recorder.facts["cwd"])),
        store=ScriptSource.place_for(folder, asked.command),
        seconds=seconds,
        threads=torch.get_num_threads(),
        on=asked.on,
    )
    try:
        source.at_once  # noqa: B018  starts Ray, where it is asked for
    except WhySpikeError as error:
        say(f"{error}; the script runs again on this machine instead")
        source = replace(source, on="joblib")
    source.remember()
    say(_expected(source, asked.seconds))

    def left() -> float | None:
        return None if asked.seconds is None else asked.seconds - (time.monotonic() - begun)

    made = diagnose_recorder(
        recorder,
        prove=True,
        most_s=asked.seconds,
        again=lambda seen, suspicions: trials_of(seen, suspicions, source, seconds=left(), progress=progress),
        progress=progress,
    )
    made = verified(made, source, seconds / source.at_once, left(), progress)
    runfolder.write_diagnosis(folder, made)
    return made


def _first_word(place: Path, command: Command) -> None:
    """What is known of the cost before the script has run."""
    from whyspike.arms import ScriptSource
    from whyspike.cost import spell
    from whyspike.output import say

    known = ScriptSource.remembered(ScriptSource.place_for(place, command), command)
    took = "" if known is None else f", about {spell(known)} as the last time"
    say(f"expected: the script once, recorded closely{took}; what its proof may cost is said when it has ended")


def carried(recorder: Recorder) -> tuple[int, int]:
    """How many stretches of the run its tape carries bit by bit, and how many there are; (0, 0) before a proof."""
    from whyspike.tapedloss import TapedLoss

    return recorder.loss_fn.carried if isinstance(recorder.loss_fn, TapedLoss) else (0, 0)


def _expected(source: ScriptSource, seconds: float | None) -> str:
    """What the proof of a script will cost, in one sentence, before it begins."""
    from whyspike.allowance import FREE_S, SHARE
    from whyspike.cost import TRAININGS, spell
    from whyspike.scriptexperiment import MOST_CAUSES

    def runs(n: int) -> str:
        return f"{n} runs of the script ({spell(-(-n // source.at_once) * source.seconds)}, {source.at_once} at a time)"

    replays = spell(max(FREE_S, SHARE * source.seconds))
    whole = (
        f"expected: replays of about {replays} for an event, or where its tape cannot be used up to "
        f"{runs(1 + 2 * MOST_CAUSES)}; for the cures up to {runs(TRAININGS)}"
    )
    return whole if seconds is None else f"{whole}; the budget leaves {spell(seconds)}"


def _no_torch(command: Command) -> str:
    other = next((words for name, words in OTHERS.items() if name in sys.modules), None)
    if other is not None:
        return (
            f"{command.target} trains with {other} and never imported torch; `whyspike run` records PyTorch trainings. "
            "For Keras use whyspike.integrations.keras.SpikeRecorder; a log can be read with `whyspike diagnose LOG`"
        )
    return (
        f"{command.target} never imported torch in this process, so nothing was recorded; where it starts the training "
        "as another program, run that one: whyspike run train.py"
    )


def _no_update(command: Command, watching: ScriptWatch, loss: str | None) -> str:
    if loss is not None and loss not in watching.names:
        known = ", ".join(sorted(watching.names)) or "none"
        return f"no update goes along a loss that is named {loss}; the losses with a name are: {known}"
    if watching.updates:
        return (
            f"{watching.updates} updates were made, but backward() was never called in front of them, so their loss is "
            "not known; call loss.backward(), or write whyspike.watch() into the loop"
        )
    if watching.forks:
        return (
            f"{command.target} made no update in this process; it started {watching.forks} others. Where they train, "
            "write whyspike.watch() into their loop, or start one of them with whyspike run"
        )
    drawn = f"its loaders were gone through {watching.passes} times, but " if watching.passes else ""
    return f"{command.target} never trained: {drawn}no torch optimizer made an update; nothing was recorded"


# --------------------------------------------------------------------------- what is said at the end


def show(made: Outcome, format: Format, output: Path | None, *, force: bool) -> None:
    """Say on standard error what was found, or write it to the file. Standard output is the script's own."""
    from whyspike.output import say

    for note in made.notes:
        say(note)
    if made.diagnoses and output is None:
        from whyspike import reports

        for folder, diagnosis in zip(made.folders, made.diagnoses, strict=True):
            if format in ("full", "concise") and sys.stderr.isatty():
                from whyspike.reports import terminal

                terminal.show(diagnosis, format=format, file=sys.stderr)
            else:
                sys.stderr.write(reports.render(diagnosis, format) + "\n")
            say(f"the record is in {folder}")
        sys.stderr.flush()
    elif made.diagnoses:
        from whyspike.output import put_diagnoses

        put_diagnoses(made.diagnoses if format != "html" else made.diagnoses[:1], format, output, force=force)


def exit_code(ended: Ended) -> int:
    """The script's own; after Ctrl-C this process ends by the same signal at its very end, as python does."""
    if ended.interrupted:
        sys.stderr.flush()
        _ends_by_signal.append(signal.SIGINT)
    return ended.code


_ends_by_signal: list[signal.Signals] = []


def _end_by_signal() -> None:
    if _ends_by_signal:
        sys.stdout.flush()
        signal.signal(_ends_by_signal[0], signal.SIG_DFL)
        os.kill(os.getpid(), _ends_by_signal[0])
