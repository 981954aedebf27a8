"""One line per verdict (`--format concise`), the answer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whyspike.reports import _several
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis


def render(diagnosis: Diagnosis) -> str:
    """The lines, each of which stands alone."""
    answer = words.sort(diagnosis).answer
    lines = [f"{words.level(diagnosis)}: {words.headline(diagnosis)} ({_facts(diagnosis)})"]
    lines += [f"{words.label(v)}: {words.headline_of(v)}" for v in diagnosis.verdicts if v is not answer]
    return "\n".join(" ".join(line.split()) for line in lines)


def render_many(diagnoses: Sequence[Diagnosis], compared: Mapping[str, Any] | None = None) -> str:
    """The lines of several runs, each behind the name of its run."""
    named = zip(_several.names(diagnoses), diagnoses, strict=True)
    lines = [f"{name}: {line}" for name, d in named for line in render(d).splitlines()]
    return "\n".join([*lines, *([f"comparison: {compared['sentence']}"] if compared else [])])


def _facts(diagnosis: Diagnosis) -> str:
    answer = words.sort(diagnosis).answer
    harm = f"{answer.harm}, " if answer and answer.harm != "none" else ""
    return harm + words.where(diagnosis, words.events_of(diagnosis, answer))
