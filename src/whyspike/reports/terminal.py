"""The diagnosis as text in a terminal (`--format full`): what happened first, then how it is known, then what to do.

The form is that of a compiler's message: a first line that stands alone, the evidence beside what would be expected,
the three arms of the experiment in the reader's unit, and advice only after `help:`.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from whyspike import form
from whyspike.reports import _several
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis, Verdict

WIDTH = 100  # of text that goes into a file
LEAST = 40  # columns of a list that are there for words, however long the names are
WIDEST = 110  # lines of a message are not stretched over a wide terminal
BAR = 16  # characters of the longest arm

LEVELS = {
    "confirmed": "bold red",
    "likely": "bold yellow",
    "inconclusive": "bold yellow",
    "refuted": "bold",
    "untested": "bold",
    "healthy": "bold green",
    "unexplained": "bold yellow",
    "cannot-say": "bold yellow",
}
ARMS = {"baseline": "red", "intervention": "blue", "placebo": "default"}
QUIET = "dim"


def render(diagnosis: Diagnosis, *, color: bool = False, width: int | None = None) -> str:
    """The whole diagnosis as text.

    Args:
        color: with ANSI colours; the text is the same with and without them.
        width: columns to use, 100 when not given.
    """
    return _text(_report(diagnosis), color, width)


def render_many(
    diagnoses: Sequence[Diagnosis],
    compared: Mapping[str, Any] | None = None,
    *,
    color: bool = False,
    width: int | None = None,
) -> str:
    """Several diagnoses as text: a list of the runs first, then each under its name, then how they compare."""
    parts = [_text(_list(diagnoses, width or WIDTH), color, width)]
    for name, diagnosis in zip(_several.names(diagnoses), diagnoses, strict=True):
        parts.append(
            f"{_text([Text(f'== {name} ==', 'bold')], color, width)}\n{render(diagnosis, color=color, width=width)}"
        )
    if compared is not None:
        parts.append(_text([_line("comparison", None, compared["sentence"])], color, width))
    return "\n\n".join(parts)


def _text(parts: Iterable[RenderableType], color: bool, width: int | None) -> str:
    console = Console(
        file=io.StringIO(),
        width=width or WIDTH,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(Group(*parts))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def show(diagnosis: Diagnosis, file: TextIO | None = None, format: Literal["full", "concise"] = "full") -> None:
    """Print the diagnosis: in colour on a terminal that has them (`NO_COLOR` is honoured), else as plain text."""
    show_many((diagnosis,), None, file, format)


def show_many(
    diagnoses: Sequence[Diagnosis],
    compared: Mapping[str, Any] | None,
    file: TextIO | None = None,
    format: Literal["full", "concise"] = "full",
) -> None:
    """Print several diagnoses in the same way, and how they compare."""
    stream: TextIO = sys.stdout if file is None else file
    seen = Console(file=stream)
    color = seen.is_terminal and not seen.no_color and seen.color_system is not None
    if format == "concise":
        from whyspike.reports import concise

        text = concise.render(diagnoses[0]) if len(diagnoses) == 1 else concise.render_many(diagnoses, compared)
    else:
        width = min(seen.width, WIDEST) if seen.is_terminal else None
        text = (
            render(diagnoses[0], color=color, width=width)
            if len(diagnoses) == 1
            else render_many(diagnoses, compared, color=color, width=width)
        )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, errors="replace").decode(encoding) + "\n")


# ------------------------------------------------------------------------------- the parts, in the order of reading


def _report(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    parts = words.sort(diagnosis)
    word, _, cause = words.level(diagnosis).partition("[")
    first = Text.assemble((word, LEVELS[word]), (f"[{cause}" if cause else "", "bold"), ": ")
    yield first + Text(words.headline(diagnosis), "bold")
    if said := words.sentence(diagnosis):
        yield Gutter(Text(said), first="  ", rest="  ")
    yield from _where(diagnosis)
    if parts.answer is not None:
        yield from _evidence(parts.answer)
        yield from _arms(parts.answer)
        yield from _cures(parts.answer)
    for verdict in parts.beside:
        yield from _beside(verdict)
    for event in words.left_over(diagnosis):
        yield _line("unexplained", event.id, words.described(event))
    for verdict in parts.open:
        yield _line(verdict.outcome, verdict.cause, words.headline_of(verdict))
        yield from _evidence(verdict)
    if parts.refuted:
        yield Text("ruled out:", "bold")
        yield Gutter(_listed((v.cause, words.headline_of(v)) for v in parts.refuted))
    for verdict in parts.untested:
        yield _line(verdict.outcome, verdict.cause, words.headline_of(verdict))
    for text in diagnosis.missing:
        yield _line("not looked at", None, form.plain(text))
    for note in diagnosis.run.notes:
        yield _line("note", note.id, form.plain(note.text))
    if parts.answer is not None and words.title(parts.answer.cause):
        yield _line("note", None, f"`whyspike explain {parts.answer.cause}` tells the whole story")


def _list(diagnoses: Sequence[Diagnosis], width: int) -> Iterator[RenderableType]:
    """One line about each of several runs: its name, its steps, and what its diagnosis begins with."""
    yield Text(_several.counted(diagnoses), "bold")
    names, steps = _several.names(diagnoses), [_several.steps(d) for d in diagnoses]
    wide, long = max(map(len, names)), max(map(len, steps))
    for name, n, diagnosis in zip(names, steps, diagnoses, strict=True):
        line = Text.assemble(
            "  ", f"{name:<{wide}}", "  ", (f"{n:>{long}}", QUIET), "  ", _several.first_words(diagnosis)
        )
        line.truncate(max(width, wide + long + LEAST), overflow="ellipsis")
        yield line


def _where(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    verdict = words.sort(diagnosis).answer
    events = words.events_of(diagnosis, verdict)
    yield Gutter(Text(words.where(diagnosis, events)), first="  --> ", rest="      ")
    if said := words.height_and_harm(diagnosis):
        yield Gutter(Text(said))
    if verdict is None and diagnosis.events:
        table = _table()
        for event in sorted(diagnosis.events, key=words.height, reverse=True)[:8]:
            table.add_row(
                event.id,
                words.KINDS[event.kind][0],
                f"step {form.count(event.step)} to {form.count(event.last_step)}",
                words.logged(event),
                words.state(event),
            )
        yield Gutter(table)


def _evidence(verdict: Verdict) -> Iterator[RenderableType]:
    if not verdict.evidence:
        return
    table = _table()
    table.add_row(*(Text(head, QUIET) for head in ("evidence", "observed", "expected", "")))
    lines: list[RenderableType] = [Text("evidence", QUIET)]
    for seen in verdict.evidence:
        statement, observed, expected = (form.plain(text) for text in (seen.statement, seen.observed, seen.expected))
        p = form.p_value(seen.p_value) or ""
        table.add_row(Text(statement), Text(observed), Text(expected), Text(p, QUIET))
        said = f"observed {observed}; expected {expected}" + (f"; {p}" if p else "")
        lines += [Gutter(Text(statement), "- ", "  "), Gutter(Text(said), "    ", "    ")]
    yield Gutter()
    yield Gutter(Narrower(table, Group(*lines)))


def _arms(verdict: Verdict) -> Iterator[RenderableType]:
    if not verdict.arms:
        return
    deciding, others = words.ordered(verdict)
    arms = (*deciding, *others)
    counts = {arm.n for arm in arms}
    each = f", {_pairs(next(iter(counts)))} each" if len(counts) == 1 else ""
    found = [m for arm in arms if (m := words.mean(arm)) is not None and math.isfinite(m)]
    longest = max(found, default=0.0)
    table = _table(right=0)
    table.add_row("", "", "", Text("removed", QUIET))
    for arm, mean in zip(arms, words.means(arms), strict=True):
        value = words.mean(arm)
        bar = "" if value is None or longest <= 0 else "#" * round(BAR * min(max(value / longest, 0), 1))
        name = form.plain(arm.words) if arm in others else f"{arm.arm}: {form.plain(arm.words)}"
        said = name + ("" if len(counts) == 1 else f" (n = {arm.n})")
        share = words.removed(arm) if arm.arm != "baseline" else None
        if others and arm is others[0]:
            table.add_row("", "", Text("other changes, for comparison:", QUIET), "")
        table.add_row(mean, Text(bar, ARMS[arm.arm]), Text(said), Text(share or ""))
    yield Gutter()
    yield Gutter(Text(f"the experiment: the same steps replayed{each}; mean {words.unit(verdict)}", QUIET))
    yield Gutter(table)


def _pairs(n: int) -> str:
    return f"{n} pair" if n == 1 else f"{n} pairs"


def _cures(verdict: Verdict) -> Iterator[RenderableType]:
    for cure in verdict.cures:
        yield Gutter(
            Text.assemble(("help", "bold cyan"), ": ", form.plain(cure.words), (f" ({words.verified(cure)})", QUIET)),
            first="",
            rest="      ",
        )
        if measured := words.numbers(cure):
            yield Gutter(Text(measured, QUIET))
        for framework, code in cure.code.items():
            lines = form.code(code).splitlines() or [""]
            name = f"{framework}: "
            yield Gutter(Text("\n".join([name + lines[0], *(" " * len(name) + line for line in lines[1:])])))


def _beside(verdict: Verdict) -> Iterator[RenderableType]:
    said = words.headline_of(verdict)
    yield _line("note", None, f"{verdict.cause} is at work beside it ({verdict.outcome}): {said}")
    arm = words.decisive(verdict)
    if arm and (share := words.removed(arm)):
        yield Gutter(Text(f"{form.plain(arm.words)}: removes {share} of the excess, n = {arm.n}"))


# ------------------------------------------------------------------------------- forms


@dataclass(frozen=True)
class Gutter:
    """What is inside, wrapped to the width, with `first` before its first line and `rest` before the others."""

    inside: RenderableType = ""
    first: str = "   |  "
    rest: str = "   |  "

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.update(width=max(options.max_width - max(len(self.first), len(self.rest)), 20))
        lines = console.render_lines(self.inside, room, pad=False)
        for k, line in enumerate(lines):
            yield Segment(self.first if k == 0 else self.rest, Style(dim=True))
            yield from line
            yield Segment.line()


@dataclass(frozen=True)
class Narrower:
    """A table where it fits without wrapping, else the same as lines."""

    table: Table
    lines: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(width=10_000), self.table).maximum
        yield self.table if needed <= options.max_width else self.lines


def _line(level: str, name: str | None, text: str) -> Gutter:
    head = Text.assemble((level, LEVELS.get(level, "bold")), f"[{name}]" if name else "", ": ", text)
    return Gutter(head, first="", rest="      ")


def _table(right: int | None = None) -> Table:
    """A table without lines; column `right` is set flush right."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(5):
        table.add_column(justify="right" if column == right else "left", overflow="fold")
    return table


def _listed(rows: Iterator[tuple[str, str]]) -> Table:
    table = _table()
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return table
