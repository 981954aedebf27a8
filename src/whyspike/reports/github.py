"""Annotations of a GitHub workflow (`--format github`): one line per event's cause, the answer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whyspike import form
from whyspike.reports import _several
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis


def render(diagnosis: Diagnosis) -> str:
    """`::warning title=…::message` for what needs doing, `::notice` for the rest."""
    return _lines(diagnosis)


def render_many(diagnoses: Sequence[Diagnosis], compared: Mapping[str, Any] | None = None) -> str:
    """The annotations of several runs; each message begins with the name of its run."""
    lines = [_lines(d, f"{name}: ") for name, d in zip(_several.names(diagnoses), diagnoses, strict=True)]
    return "\n".join([*lines, *([_command("notice", "comparison", compared["sentence"])] if compared else [])])


def _lines(diagnosis: Diagnosis, before: str = "") -> str:
    parts = words.sort(diagnosis)
    answer = parts.answer
    said = [f"{words.headline(diagnosis)}.", words.sentence(diagnosis) or ""]
    said += [words.where(diagnosis, words.events_of(diagnosis, answer)) + "."]
    said += [f"help: {form.plain(c.words)} ({words.verified(c)})" for c in (answer.cures[:1] if answer else ())]
    quiet = diagnosis.answer.status == "healthy" or (answer is not None and answer.harm == "none")
    lines = [_command("notice" if quiet else "warning", words.level(diagnosis), before + " ".join(filter(None, said)))]
    lines += [_command("notice", words.label(v), before + words.headline_of(v)) for v in (*parts.beside, *parts.open)]
    return "\n".join(lines)


def _command(command: str, title: str, message: str) -> str:
    # the escapes of GitHub's own toolkit: packages/core/src/command.ts, escapeData and escapeProperty
    data = _escape(message)
    name = _escape(f"whyspike: {title}").replace(":", "%3A").replace(",", "%2C")
    return f"::{command} title={name}::{data}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
