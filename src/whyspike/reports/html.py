"""The diagnosis as one HTML file (`--format html`) that opens without a network, and as a fragment for notebooks.

The page may load nothing: its content security policy allows its own three scripts, by their hashes, and no address.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from whyspike import form
from whyspike.errors import OutputExists
from whyspike.reports import _words as words

if TYPE_CHECKING:
    from jinja2 import Environment

    from whyspike.types import Arm, Diagnosis, Verdict


def render(diagnosis: Diagnosis) -> str:
    """The whole page."""
    pictures = _pictures(diagnosis)
    scripts = {name: _asset(name) for name in ("templates/theme.js", "vendor/uPlot.iife.min.js", "templates/report.js")}
    licence = f"/*\n{_asset('vendor/uPlot-LICENSE')}\n*/\n"  # it goes wherever the code goes
    scripts["vendor/uPlot.iife.min.js"] = licence + scripts["vendor/uPlot.iife.min.js"]
    return _template("report.html.j2").render(
        **_content(diagnosis),
        sketch=pictures.pop("sketch"),
        has=pictures,
        data=_embedded(pictures),
        theme_js=scripts["templates/theme.js"],
        uplot_js=scripts["vendor/uPlot.iife.min.js"],
        report_js=scripts["templates/report.js"],
        uplot_css=_asset("vendor/uPlot.min.css"),
        report_css=_asset("templates/report.css"),
        hashes=" ".join(f"'{_hash(text)}'" for text in scripts.values()),
    )


def write(diagnosis: Diagnosis, path: str | Path, force: bool = False) -> Path:
    """Write the page, whole or not at all, and return its path. Missing parent folders are made.

    Raises:
        OutputExists: the file is there already and `force` is not set.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputExists(f"{path} is there already; give another name, or allow it with --force (force=True)")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = render(diagnosis)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(part, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def fragment(diagnosis: Diagnosis) -> str:
    """A short form without scripts, for notebooks: they show it even where scripts are not trusted."""
    return _template("fragment.html.j2").render(**_content(diagnosis), sketch=_pictures(diagnosis)["sketch"])


# ------------------------------------------------------------------------------- what the templates are given


def _content(diagnosis: Diagnosis) -> dict[str, Any]:
    parts = words.sort(diagnosis)
    events = words.events_of(diagnosis, parts.answer)
    return {
        "diagnosis": diagnosis,
        "run": diagnosis.run,
        "parts": parts,
        "words": words,
        "form": form,
        "level": words.level(diagnosis),
        "headline": words.headline(diagnosis) if words.sentence(diagnosis) else None,
        "sentence": _signs(words.first_sentence(diagnosis)[0]),
        "more": _signs(words.first_sentence(diagnosis)[1]),
        "where": words.where(diagnosis, events),
        "heights": _signs(words.height_and_harm(diagnosis) or ""),
        "events": sorted(
            words.left_over(diagnosis) if parts.answer else diagnosis.events, key=words.height, reverse=True
        )[:8],
        "arms": _arms(parts.answer) if parts.answer else [],
        "unit": _signs(words.unit(parts.answer).replace(" x ", " \u00d7 ")),
        "facts": {
            k: f"{v:,}" if type(v) is int else v
            for k, v in (diagnosis.record.facts if diagnosis.record else {}).items()
            if _is_short(v)
        },
    }


def _arms(verdict: Verdict) -> list[dict[str, Any]]:
    """The arms with the places of their bars and dots, in percent of the width."""
    deciding, others = words.ordered(verdict)
    finite = [x for arm in verdict.arms for x in arm.excess if _is_number(x)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    span = (high - low) or 1.0

    def place(x: float) -> float:
        return round(100 * (x - low) / span, 2)

    def row(arm: Arm, said: str) -> dict[str, Any]:
        mean = words.mean(arm)
        ends = sorted((place(0.0), place(mean))) if _is_number(mean) else [0.0, 0.0]
        return {
            "arm": arm.arm,
            "words": form.plain(arm.words),
            "n": arm.n,
            "mean": _signs(said),
            "other": arm in others,
            "removed": _signs(words.removed(arm) or "") if arm.arm != "baseline" else None,
            "left": ends[0],
            "width": round(ends[1] - ends[0], 2),
            "dots": [place(x) for x in arm.excess if _is_number(x)][:200],
        }

    arms = (*deciding, *others)
    return [row(arm, said) for arm, said in zip(arms, words.means(arms), strict=True)]


def _pictures(diagnosis: Diagnosis) -> dict[str, Any]:
    if diagnosis.record is None and not diagnosis.trials:
        return dict.fromkeys(("loss", "fold", "arms", "sketch"))
    from whyspike.reports import _pictures as pictures

    return {
        "loss": pictures.loss(diagnosis),
        "fold": pictures.fold(diagnosis),
        "arms": pictures.arms(diagnosis),
        "sketch": pictures.sketch(diagnosis),
    }


def _signs(text: str) -> str:
    """With the signs that a terminal may not have: times in `15.9 x` and `x 15.9`, minus in `-1`, the arrow of `->`."""
    text = re.sub(r"(?<=\d) x\b", "\u00d7", text)
    text = re.sub(r"\bx (?=\d)", "\u00d7\u00a0", text)
    text = re.sub(r"(?<![\w.)-])-(?=\.?\d)", "\u2212", text)
    return re.sub(r"(?<=\d) ?%", "\u00a0%", text.replace(" -> ", " \u2192 "))


def _start(text: str) -> str:
    """The text with a capital letter, unless it begins with a name from code."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if re.fullmatch(r"[a-z]+[,:;.']?[a-z]*", first) else text


def _is_number(x: float | None) -> TypeGuard[float]:
    return x is not None and abs(x) < float("inf")


def _is_short(value: object) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 120


# ------------------------------------------------------------------------------- embedding


def _embedded(data: object) -> str:
    """JSON that cannot end its script element or break a line of JavaScript."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and U+2029 come out escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    text = resources.files("whyspike.reports").joinpath(name).read_text(encoding="utf-8")
    return text.strip()


@cache
def _environment() -> Environment:
    from jinja2 import BaseLoader, Environment, StrictUndefined

    class Assets(BaseLoader):
        def get_source(self, environment: Environment, template: str) -> tuple[str, None, None]:
            return _asset(f"templates/{template}"), None, None

    made = Environment(
        loader=Assets(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["plain"] = form.plain
    made.filters["code"] = form.code
    made.filters["count"] = form.count
    made.filters["signs"] = _signs
    made.filters["start"] = _start
    return made


def _template(name: str) -> Any:
    return _environment().get_template(name)
