"""The command line. Results go to standard output, talk and progress to standard error.

Exit codes: 0 nothing needs doing, 1 something does or cannot be explained, 2 wrong usage or input, 3 a fault of
whyspike itself, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from whyspike import __version__
from whyspike.errors import UnreadableRun, WhySpikeError
from whyspike.launch import On
from whyspike.output import (
    Format,
    Progress,
    choose,
    claim,
    exit_code,
    free_name,
    preflight_text,
    put,
    put_diagnoses,
    put_diagnosis,
    say,
)
from whyspike.script import Command

if TYPE_CHECKING:
    from whyspike.training import Training

FIRST_CASE = "double-averaged-loss"
SAID = 5  # files of a folder that are named where they cannot be read

app = App(
    name="whyspike",
    help="Why does my training loss spike? Finds the cause and proves it by replaying the steps around it.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=False),
    suppress_keyboard_interrupt=False,
)

Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
PathOrDash = Annotated[str, Parameter(allow_leading_hyphen=True)]  # "-" is standard input

# What a command may lack on this machine, and the extra that brings it.
_EXTRAS = {
    "torch": "torch",
    "sklearn": "demo",
    "lightning": "lightning",
    "transformers": "huggingface",
    "keras": "keras",
}


@app.command(usage="Usage: whyspike demo [OPTIONS] [CASE]")
def demo(
    case: str = FIRST_CASE,
    /,
    *,
    list: bool = False,
    healthy: bool = False,
    seed: int = 0,
    format: Format = "full",
    output: Output = None,
    force: bool = False,
) -> int:
    """Train a small real case, diagnose it, prove it, and write the report.

    Args:
        case: which case; the first question when it is left out.
        list: show the cases and do nothing.
        healthy: train the healthy twin of the case.
        seed: of the training.
        format: of what is printed.
        output: where the HTML report goes; whyspike-CASE.html here when it is left out.
        force: overwrite the HTML report.
    """
    from whyspike.case import cases, find_case

    if list:
        width = max(map(len, cases()))
        put("\n".join(f"{name:<{width}}  {c.words}" for name, c in cases().items()), None, force=False)
        return 0
    chosen = find_case(case)
    file = Path(f"whyspike-{case}{'-healthy' if healthy else ''}.html")
    place = claim(output or (file if force else free_name(file)), force=force)
    from whyspike import pipeline

    with Progress() as progress:
        diagnosis = pipeline.demo(chosen, healthy=healthy, seed=seed, progress=progress)
    put_diagnosis(diagnosis, format, None, force=False)
    put_diagnosis(diagnosis, "html", place, force=force)
    return 0


@app.command(usage="Usage: whyspike diagnose [OPTIONS] PATH [OTHER]")
def diagnose(
    path: PathOrDash,
    other: PathOrDash | None = None,
    /,
    *,
    loss: str | None = None,
    steps_per_epoch: float | None = None,
    batch_size: int | None = None,
    dataset_size: int | None = None,
    format: Format | None = None,
    output: Output = None,
    force: bool = False,
) -> int:
    """Say why the loss of a recorded run, or of a log that another tool wrote, spikes. Runs no code of yours.

    Args:
        path: the folder of a recorded run, or a log; - is standard input.
        other: a second run to compare it with: do they wiggle and spike at the same steps?
        loss: the column of the log that holds the loss; without it, the one that is called so.
        steps_per_epoch: optimizer updates in an epoch, where the log does not say.
        batch_size: samples in an update, where the log does not say.
        dataset_size: samples in an epoch, where the log does not say.
        format: of the result; without it, what the name of FILE ends in, else full.
        output: write the result to this file instead of standard output.
        force: overwrite the file.
    """
    given = {"--steps-per-epoch": steps_per_epoch, "--batch-size": batch_size, "--dataset-size": dataset_size}
    for name, number in given.items():
        if number is not None and not number > 0:
            raise WhySpikeError(f"{name} {number} was given; it must be above 0")
    if output is not None:
        claim(output, force=force)
    from whyspike import pipeline
    from whyspike.logs.assemble import Asked, described

    asked = Asked(loss=loss, steps_per_epoch=steps_per_epoch, batch_size=batch_size, dataset_size=dataset_size)
    left_out: list[UnreadableRun] = []
    with Progress() as progress:
        made = pipeline.diagnose_all(path, asked, left_out=left_out, progress=progress)
        compared = None
        if other is not None:
            made = (made[-1], pipeline.diagnose_all(other, asked, progress=progress)[-1])
            from whyspike.compare import compare

            compared = compare(*made)
    read = [d.record for d in made if d.record is not None and "reader_says" in d.record.facts]
    for line in dict.fromkeys(map(described, read)):  # once where a log holds several runs alike
        say(line)
    for error in left_out[:SAID]:
        say(f"left out: {error}")
    if len(left_out) > SAID:
        say(f"left out: {len(left_out) - SAID} more that hold no curve")
    put_diagnoses(made, choose(format, output), output, compared, force=force)
    return max(map(exit_code, made))


@app.command(usage="Usage: whyspike run [OPTIONS] SCRIPT [ARGS…]")
def run(
    script: str,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    module: Annotated[bool, Parameter(name=["--module", "-m"])] = False,
    loss: str | None = None,
    no_prove: bool = False,
    budget: float | None = None,
    folder: Path | None = None,
    format: Format | None = None,
    output: Output = None,
    force: bool = False,
) -> int:
    """Run a training script unchanged, record it, and find the cause when it has ended. The exit code is its own.

    Whatever comes after SCRIPT is handed to the script. Our result goes to standard error, or to FILE.

    Args:
        script: as you would give it to python.
        arguments: of the script.
        module: SCRIPT is the name of a module, as after python -m.
        loss: the variable that backward() is called on, where the script has several losses.
        no_prove: do not replay the steps around the events; diagnose what was recorded.
        budget: the most minutes to spend in all. With it the script also runs again, with one thing changed, where
            replays cannot decide, and with the cures.
        folder: where the record goes; whyspike-runs/SCRIPT-TIME when it is left out.
        format: of the result; without it, what the name of FILE ends in, else full.
        output: write the result to this file instead of standard error.
        force: overwrite the file.
    """
    if output is not None:
        claim(output, force=force)
    from whyspike import scriptrun
    from whyspike.script import Command

    _positive(budget)
    again = budget is not None
    command = Command(script, arguments, module)
    made = scriptrun.run_script(
        command, loss=loss, prove=not no_prove, closely=again, folder=folder, rerun=again, budget=budget
    )
    scriptrun.show(made, choose(format, output), output, force=force)
    return scriptrun.exit_code(made.ended)


@app.command(usage="Usage: whyspike prove [OPTIONS] TARGET [-- ARGS…]")
def prove(
    target: str,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    budget: float | None = None,
    on: On = "joblib",
    full: bool = False,
    format: Format | None = None,
    output: Output = None,
    force: bool = False,
) -> int:
    """Train, and find the cause by replaying the steps around each event with one thing changed. Runs your code.

    Args:
        target: file.py:function, where the function returns a whyspike.Training; a script; or a recorded run of either.
        arguments: of the script, after --.
        budget: the most minutes to spend.
        on: where a script runs again: joblib takes the cores of this machine, ray those of a Ray cluster.
        full: replay with every change that there is, to see what each of them removes.
        format: of the result; without it, what the name of FILE ends in, else full.
        output: write the result to this file instead of standard output.
        force: overwrite the file.
    """
    from whyspike import launch, targets

    _positive(budget)
    launch.check(on)
    if output is not None:
        claim(output, force=force)
    script = targets.script(target, arguments)
    if script is not None:
        return _prove_script(script, budget, on, choose(format, output), output, force=force)
    source = targets.resolve(target)
    if on != "joblib":
        raise WhySpikeError(f"--on {on} runs scripts; {target} is a function, which is trained in this process")
    from whyspike import pipeline

    with Progress() as progress:
        diagnosis = pipeline.prove(source, target=targets.stored(target), budget=budget, full=full, progress=progress)
    put_diagnosis(diagnosis, choose(format, output), output, force=force)
    return exit_code(diagnosis)


def _positive(budget: float | None) -> None:
    if budget is not None and not budget > 0:
        raise WhySpikeError(f"--budget {budget} was given; it is the most minutes to spend and must be above 0")


def _prove_script(
    script: tuple[Command, Path], budget: float | None, on: On, format: Format, output: Path | None, *, force: bool
) -> int:
    """Run the script with a closer record, its output on standard error, and again with one thing changed."""
    from contextlib import redirect_stdout

    from whyspike import scriptrun

    command, cwd = script
    os.chdir(cwd)
    with redirect_stdout(sys.stderr):
        made = scriptrun.run_script(command, closely=True, rerun=True, budget=budget, on=on)
    for note in made.notes:
        say(note)
    if not made.diagnoses:
        return made.ended.code or 2
    put_diagnoses(made.diagnoses, format, output, force=force)
    return max(map(exit_code, made.diagnoses))


@app.command(usage="Usage: whyspike check [OPTIONS] TARGET [-- ARGS…]")
def check(
    target: str,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    format: Format | None = None,
    output: Output = None,
    force: bool = False,
) -> int:
    """Look at a setup before it trains. Findings give the exit code 1; notes do not. Runs your code.

    Args:
        target: file.py:function, where the function returns a whyspike.Training; a script; or a recorded run of either.
        arguments: of the script, after --.
        format: of the result; full, concise, json, markdown or github.
        output: write the result to this file instead of standard output.
        force: overwrite the file.
    """
    from whyspike import targets

    if output is not None:
        claim(output, force=force)
    script = targets.script(target, arguments)
    if script is not None:
        source = _first_steps(*script)
    else:
        source = targets.resolve(target)
    from whyspike import preflight

    result = preflight.check(source)
    put(preflight_text(result, choose(format, output)), output, force=force)
    return int(bool(result.findings))


def _first_steps(command: Command, cwd: Path) -> Training:
    """Run the first steps of the script, its output on standard error."""
    from contextlib import redirect_stdout

    from whyspike import scriptcheck

    os.chdir(cwd)
    with redirect_stdout(sys.stderr):
        return scriptcheck.training_of(command)


@app.command
def explain(cause: str, /, *, format: Literal["full", "markdown", "json"] = "full") -> int:
    """Tell the whole story of one cause: what happens, how it looks, how it is tested, what to do.

    Args:
        cause: its name or an alias; `whyspike list` shows all of them.
        format: of the text.
    """
    from whyspike.catalogue_docs import as_data, page
    from whyspike.cause import find

    found = find(cause)
    if format == "json":
        put(json.dumps(as_data(found), indent=2, ensure_ascii=False), None, force=False)
    elif format == "full" and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console(width=min(Console().width, 100)).print(Markdown(page(found)))
    else:
        put(page(found), None, force=False)
    return 0


@app.command(name="list")
def list_causes(*, format: Literal["full", "concise", "json", "markdown"] = "full") -> int:
    """Show every cause in the catalogue.

    Args:
        format: of the table; concise gives the names alone.
    """
    from whyspike.cause import catalogue

    rows = [(c.id, c.family, c.status, c.summary) for c in catalogue().values()]
    rows.sort(key=lambda row: (row[1], row[0]))
    match format:
        case "json":
            keys = ("name", "family", "status", "summary")
            text = json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2, ensure_ascii=False)
        case "concise":
            text = "\n".join(row[0] for row in rows)
        case "markdown":
            head = [("cause", "family", "status", "the loss spiked because of"), ("---",) * 4]
            text = "\n".join(f"| {' | '.join(row)} |" for row in head + rows)
        case _:
            text = _table(("cause", "family", "status", "the loss spiked because of"), rows)
    put(text, None, force=False)
    return 0


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns under a line. The last one is not cut: a terminal wraps it, and `grep` finds it."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    lines = [head, tuple("─" * w for w in [*widths, len(head[-1])]), *rows]
    return "\n".join("  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]) for row in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        tokens = _script_apart(sys.argv[1:] if arguments is None else arguments)
        code = app(tokens, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:
        return 2  # cyclopts has said on stderr what is wrong
    except WhySpikeError as error:
        say(f"{error}{_where(error)}")
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            return _fault()
        say(f"this needs {error.name}, which is not installed; write: pip install 'whyspike[{_EXTRAS[error.name]}]'")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`whyspike list | head`). The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        return _fault()
    return code if isinstance(code, int) else 0


def _script_apart(tokens: Sequence[str]) -> list[str]:
    """The tokens; after `run`, a `--` in front of the script, for what follows is not ours to read."""
    if not tokens or tokens[0] != "run":
        return [*tokens]
    at = 1
    while at < len(tokens) and tokens[at].startswith("-") and tokens[at] != "--":
        at += 2 if tokens[at] in ("--loss", "--budget", "--folder", "--format", "--output", "-o") else 1
    rest = tokens[at + 1 :] if tokens[at : at + 1] == ["--"] else tokens[at:]
    return [*tokens[:at], *(["--", *rest] if rest else ())]


def _where(error: WhySpikeError) -> str:
    """The line of the user's own code that raised, when one did."""
    import traceback

    frames = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
    ours = (str(Path(__file__).parent), sys.prefix, sys.base_prefix, "<")
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""


def _fault() -> int:
    import traceback

    traceback.print_exc()
    say(f"this is a fault of whyspike {__version__}; please open an issue with the lines above")
    return 3
