"""Where a result comes out: in which form, on which stream or in which file, and with which exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whyspike.errors import OutputExists, WhySpikeError

if TYPE_CHECKING:
    from types import TracebackType

    from whyspike.types import Diagnosis, Preflight

Format = Literal["full", "concise", "json", "markdown", "github", "html"]
_BY_SUFFIX: dict[str, Format] = {".html": "html", ".htm": "html", ".json": "json", ".md": "markdown"}

# --------------------------------------------------------------------------- the exit code


def exit_code(diagnosis: Diagnosis) -> int:
    """0 when nothing needs doing: healthy, or only causes with harm none are at work. Else 1."""
    if diagnosis.answer.status == "healthy":
        return 0
    if diagnosis.answer.status != "explained":
        return 1
    at_work = [v for v in diagnosis.verdicts if v.outcome in ("confirmed", "likely")]
    return int(any(v.harm != "none" for v in at_work))


# --------------------------------------------------------------------------- the form and the place


def choose(format: Format | None, output: Path | None) -> Format:
    """The form that was asked for; else the one that the file's name ends in; else full."""
    return format or (_BY_SUFFIX.get(output.suffix.lower(), "full") if output else "full")


def claim(path: Path, *, force: bool) -> Path:
    """Say before the work begins that its result could not be written.

    Raises:
        OutputExists: the file is there already and `force` is not set.
        WhySpikeError: it cannot be written there.
    """
    if path.is_dir():
        raise WhySpikeError(f"{path} is a folder; -o needs the name of a file: -o {path / 'whyspike.html'}")
    if path.exists() and not force:
        raise OutputExists(f"{path} exists already; add --force to overwrite it, or give another name with -o FILE")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise WhySpikeError(f"the folder {folder} does not exist; make it first, or give another place with -o FILE")
    if not os.access(folder, os.W_OK):
        raise WhySpikeError(f"nothing can be written into {folder}; give another place with -o FILE")
    return path


def free_name(path: Path) -> Path:
    """The path itself, or with the first free number before its suffix: `a.html`, `a-2.html`, …"""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def put(text: str, output: Path | None, *, force: bool) -> None:
    """Print the text on standard output, or write it to the file and say so on standard error."""
    if output is None:
        print(text)
        return
    claim(output, force=force)
    try:
        output.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise WhySpikeError(
            f"{output} could not be written ({error.strerror}); give another place with -o FILE"
        ) from error
    say(f"wrote {output}")


def put_diagnosis(diagnosis: Diagnosis, format: Format, output: Path | None, *, force: bool) -> None:
    """Print the diagnosis, in colour on a terminal that has them, or write it to the file."""
    from whyspike import reports

    if output is None and format in ("full", "concise"):
        from whyspike.reports import terminal

        terminal.show(diagnosis, format=format)
        return
    put(reports.render(diagnosis, format), output, force=force)


def put_diagnoses(
    diagnoses: Sequence[Diagnosis],
    format: Format,
    output: Path | None,
    compared: Mapping[str, Any] | None = None,
    *,
    force: bool,
) -> None:
    """Print the diagnoses of one run or of several, and how they compare, or write them to the file.

    Raises:
        WhySpikeError: several runs are to go into one page of html.
    """
    if len(diagnoses) == 1:
        put_diagnosis(diagnoses[0], format, output, force=force)
        return
    from whyspike import reports

    if output is None and format in ("full", "concise"):
        from whyspike.reports import terminal

        terminal.show_many(diagnoses, compared, format=format)
    else:
        put(reports.render_many(diagnoses, format, compared), output, force=force)


def say(words: str) -> None:
    """Talk, on standard error."""
    print(f"whyspike: {words}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- the result of a check


def preflight_text(result: Preflight, format: Format) -> str:
    """What `whyspike check` says, in that form.

    Raises:
        WhySpikeError: the form is html; a check has no pictures.
    """
    match format:
        case "json":
            from whyspike.reports.json import render_preflight

            return render_preflight(result)
        case "html":
            raise WhySpikeError("check has no pictures to show in html; choose full, concise, json, markdown or github")
        case "concise":
            lines = [f"finding[{f.cause}]: {f.text}" for f in result.findings]
            lines += [f"note[{n.id}]: {n.text}" for n in result.notes]
        case "github":
            lines = [f"::warning title=whyspike {f.cause}::{_one_line(f.text)}" for f in result.findings]
            lines += [f"::notice title=whyspike {n.id}::{_one_line(n.text)}" for n in result.notes]
        case "markdown":
            lines = []
            for f in result.findings:
                lines += [f"### {f.cause}", "", f.text, "", f"- observed: {f.observed}", f"- expected: {f.expected}"]
                lines += [f"- cure: {f.cure}", ""]
            lines += [f"- note ({n.id}): {n.text}" for n in result.notes]
        case _:
            lines = []
            for f in result.findings:
                lines += [f"finding[{f.cause}]: {f.text}", f"   |  observed: {f.observed}"]
                lines += [f"   |  expected: {f.expected}", f"help: {f.cure}", ""]
            lines += [f"note[{n.id}]: {n.text}" for n in result.notes]
    return (
        "\n".join(lines).strip()
        or "nothing found: this setup invites none of the causes that can be seen before training"
    )


def _one_line(text: str) -> str:
    # the escapes of GitHub's workflow commands
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


# --------------------------------------------------------------------------- progress


class Progress:
    """What is going on, on standard error, once it has taken a second. A stage calls it with words and a fraction.

    A terminal gets one line that moves and goes away. A file gets a line at most every five seconds.
    """

    after_s = 1.0
    between_lines_s = 5.0

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = -self.between_lines_s
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, words: str, done: float) -> None:
        """Report that `words` is going on and the fraction `done` (0 to 1) of the whole is behind us."""
        now = time.monotonic() - self._began
        if now < self.after_s:
            return
        done = min(max(done, 0.0), 1.0)
        if sys.stderr.isatty():
            self._bar = self._bar or self._start()
            self._bar.update(self._task, description=words, completed=done)
        elif now - self._last >= self.between_lines_s:
            self._last = now
            say(f"{words} ({done:.0%})")

    def _start(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = bar.add_task("", total=1.0)
        bar.start()
        return bar
