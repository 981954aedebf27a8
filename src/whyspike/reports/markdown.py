"""The diagnosis as Markdown (`--format markdown`), for an issue, a pull request or a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whyspike import form
from whyspike.reports import _several
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis, Verdict


def render(diagnosis: Diagnosis) -> str:
    """The whole diagnosis, in the order of the terminal."""
    return "\n".join(_report(diagnosis)).strip() + "\n"


def render_many(diagnoses: Sequence[Diagnosis], compared: Mapping[str, Any] | None = None) -> str:
    """A table of the runs, then each of them under its name, then how they compare."""
    names = _several.names(diagnoses)
    rows = ((name, _several.steps(d), _several.first_words(d)) for name, d in zip(names, diagnoses, strict=True))
    parts = [f"{_several.counted(diagnoses)}\n", *_table(("run", "steps", "answer"), rows)]
    for name, diagnosis in zip(names, diagnoses, strict=True):
        parts += [f"## {_text(name)}\n", render(diagnosis)]
    return "\n".join([*parts, *([f"**Comparison**: {_text(compared['sentence'])}"] if compared else [])])


def _report(diagnosis: Diagnosis) -> Iterator[str]:
    parts = words.sort(diagnosis)
    events = words.events_of(diagnosis, parts.answer)
    yield f"### `{words.level(diagnosis)}`: {_text(words.headline(diagnosis))}"
    yield ""
    if said := words.sentence(diagnosis):
        yield f"{_text(said)}\n"
    yield _text(f"{words.where(diagnosis, events)}.")
    if said := words.height_and_harm(diagnosis):
        yield _text(f"{said[0].upper()}{said[1:]}.")
    yield ""
    if parts.answer is not None:
        yield from _verdict(parts.answer)
    if parts.beside:
        yield "**At work beside it**\n"
        for verdict in parts.beside:
            yield f"- `{words.label(verdict)}`: {_text(words.headline_of(verdict))}"
        yield ""
    if over := words.left_over(diagnosis):
        yield "**Not explained by it**\n"
        yield from (f"- `{_text(event.id)}`: {_text(words.described(event))}" for event in over)
        yield ""
    if parts.open:
        yield "**Open**\n"
        for verdict in parts.open:
            yield f"- `{words.label(verdict)}`: {_text(words.headline_of(verdict))}"
        yield ""
    if parts.refuted:
        yield "**Ruled out**\n"
        yield from (f"- `{v.cause}`: {_text(words.headline_of(v))}" for v in parts.refuted)
        yield ""
    if parts.untested or diagnosis.missing:
        yield "**What could not be looked at**\n"
        yield from (f"- `{words.label(v)}`: {_text(words.headline_of(v))}" for v in parts.untested)
        yield from (f"- {_text(text)}" for text in diagnosis.missing)
        yield ""
    if diagnosis.run.notes:
        yield "**About the record**\n"
        yield from (f"- `{note.id}`: {_text(note.text)}" for note in diagnosis.run.notes)


def _verdict(verdict: Verdict) -> Iterator[str]:
    if verdict.evidence:
        rows = ((e.statement, e.observed, e.expected, form.p_value(e.p_value) or "") for e in verdict.evidence)
        yield from _table(("evidence", "observed", "expected", ""), rows)
    if verdict.arms:
        deciding, others = words.ordered(verdict)
        arms = (*deciding, *others)
        rows = (
            (a.arm, a.words, str(a.n), mean, "" if a.arm == "baseline" else words.removed(a) or "")
            for a, mean in zip(arms, words.means(arms), strict=True)
        )
        yield from _table(("arm", "what was changed", "n", f"mean {words.unit(verdict)}", "removed"), rows)
    for cure in verdict.cures:
        yield f"**Help**: {_text(form.plain(cure.words))} ({words.verified(cure)})"
        if measured := words.numbers(cure):
            yield f"{_text(measured)}"
        for framework, code in cure.code.items():
            text = form.code(code)
            fence = "`" * max([2, *(len(run) for run in re.findall("`+", text))]) + "`"
            yield f"\n{fence}python\n# {form.plain(framework)}\n{text}\n{fence}"
        yield ""


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(_text(cell) for cell in row) + " |"
    yield ""


def _text(text: str) -> str:
    """Text in which Markdown and HTML mean nothing. Single `*` and `_` inside words and numbers stay as they are."""
    return re.sub(r"([\\`|<>\[\]]|\*\*|^[#+-](?= ))", r"\\\1", form.plain(text))
