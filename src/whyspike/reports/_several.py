"""What a report of several runs says of them: a name for each, how many of which kind, and one line about each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.form import count, plain
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from whyspike.types import Diagnosis

STATUS = ("explained", "unexplained", "cannot-say", "healthy")


def names(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """A name for each run: its source without the folders that all have in common.

    Runs that lie one after the other in one log are numbered.
    """
    short = _without_common_folders([plain(d.run.source) for d in diagnoses])
    often, seen, made = Counter(short), Counter[str](), []
    for name in short:
        seen[name] += 1
        made.append(f"{name}, run {seen[name]}" if often[name] > 1 else name)
    return made


def _without_common_folders(sources: Sequence[str]) -> list[str]:
    folders = [os.path.dirname(source) for source in sources]
    try:
        common = os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # one begins at the root of a drive and another does not
        common = ""
    return [os.path.relpath(source, common) for source in sources] if common else list(sources)


def counted(diagnoses: Sequence[Diagnosis]) -> str:
    """`3 runs: 1 explained, 2 healthy`."""
    found = Counter(d.answer.status for d in diagnoses)
    return f"{count(len(diagnoses))} runs: {', '.join(f'{found[s]} {s}' for s in STATUS if found[s])}"


def first_words(diagnosis: Diagnosis) -> str:
    """What a diagnosis begins with; where it names no cause, its first sentence, and of open events where they are."""
    said = words.headline(diagnosis) if diagnosis.answer.cause else words.first_sentence(diagnosis)[0].rstrip(".")
    if diagnosis.answer.status == "unexplained" and diagnosis.events:
        said = words.where(diagnosis, diagnosis.events)
    return f"{words.level(diagnosis)}: {said}"


def steps(diagnosis: Diagnosis) -> str:
    """How many steps the run has."""
    return "1 step" if diagnosis.run.steps == 1 else f"{count(diagnosis.run.steps)} steps"
