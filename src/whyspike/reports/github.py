"""Annotations of a GitHub workflow (`--format github`): one line per event's cause, the answer first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whyspike import form
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis


def render(diagnosis: Diagnosis) -> str:
    """`::warning title=…::message` for what needs doing, `::notice` for the rest."""
    parts = words.sort(diagnosis)
    answer = parts.answer
    said = [f"{words.headline(diagnosis)}.", words.sentence(diagnosis) or ""]
    said += [words.where(diagnosis, words.events_of(diagnosis, answer)) + "."]
    said += [f"help: {form.plain(c.words)} ({words.verified(c)})" for c in (answer.cures[:1] if answer else ())]
    quiet = diagnosis.answer.status == "healthy" or (answer is not None and answer.harm == "none")
    lines = [_command("notice" if quiet else "warning", words.level(diagnosis), " ".join(filter(None, said)))]
    lines += [_command("notice", words.label(v), words.headline_of(v)) for v in (*parts.beside, *parts.open)]
    return "\n".join(lines)


def _command(command: str, title: str, message: str) -> str:
    # the escapes of GitHub's own toolkit: packages/core/src/command.ts, escapeData and escapeProperty
    data = _escape(message)
    name = _escape(f"whyspike: {title}").replace(":", "%3A").replace(",", "%2C")
    return f"::{command} title={name}::{data}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
