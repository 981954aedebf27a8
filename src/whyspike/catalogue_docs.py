"""What is generated in `docs/`: the pages of the catalogue, from the docstrings, and the schemas, from the types.

`python -m whyspike.catalogue_docs [--check] [--demo]`; `--demo` also runs the demo and shows it in the README.
"""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from whyspike.cause import SECTIONS, catalogue

if TYPE_CHECKING:
    from whyspike.cause import Cause

DOCS = Path(__file__).parents[2] / "docs"  # in a checkout
FOLDER = DOCS / "causes"
WRITTEN = "<!-- written by `./dev docs`"


def case_of(cause: Cause) -> str | None:
    """The case that shows the cause: the file of the same name, or the one that it names. Nothing is imported."""
    import whyspike.cases as package

    name = cause.demo or cause.id
    module = name.replace("-", "_")
    return name if any(m.name == module for m in pkgutil.iter_modules(package.__path__)) else None


def as_data(cause: Cause) -> dict[str, object]:
    """Everything that `explain` tells, as plain data."""
    return {
        "name": cause.id,
        "family": cause.family,
        "status": cause.status,
        "summary": cause.summary,
        "title": cause.title,
        "aliases": list(cause.aliases),
        "needs": list(cause.needs),
        "case": case_of(cause),
        "sections": {name: inspect.cleandoc(cause.section(name)) for name in SECTIONS if cause.section(name)},
    }


def page(cause: Cause) -> str:
    """The page of one cause, in Markdown."""
    known = [f"family: {cause.family}", f"status: {cause.status}"]
    if cause.aliases:
        known.append(f"also found as: {', '.join(cause.aliases)}")
    lines = [f"# {cause.id}", "", f"The loss spiked because of {_lower(cause.summary)}", "", " · ".join(known), ""]
    if case := case_of(cause):
        lines += [f"See it happen: `whyspike demo {case}`", ""]
    for name in SECTIONS:
        if text := cause.section(name):
            lines += [f"## {name}", "", inspect.cleandoc(text), ""]
    return "\n".join(lines)


def _lower(summary: str) -> str:
    first, rest = summary[:1], summary[1:]
    return (first if rest[:1].isupper() else first.lower()) + rest  # "BatchNorm", but not "CTC"


def index() -> str:
    """The table of all causes, in Markdown."""
    lines = ["# The causes", "", "| cause | family | status | the loss spiked because of |", "|---|---|---|---|"]
    causes = sorted(catalogue().values(), key=lambda c: (c.family, c.id))
    lines += [f"| [{c.id}]({c.id}.md) | {c.family} | {c.status} | {_lower(c.summary)} |" for c in causes]
    return "\n".join([*lines, ""])


def pages(folder: Path = FOLDER) -> dict[Path, str]:
    """Every generated page by its path. Causes of other packages have no page here."""
    made = {folder / "README.md": f"{WRITTEN} from src/whyspike/causes/ -->\n{index()}"}
    for cause in catalogue().values():
        module = type(cause).__module__
        if module.startswith("whyspike.causes."):
            source = f"src/{module.replace('.', '/')}.py"
            made[folder / f"{cause.id}.md"] = f"{WRITTEN} from {source} -->\n{page(cause)}"
    return made


def schemas() -> dict[Path, str]:
    """The schema of every published document by its path."""
    from whyspike.reports.json import write_schemas

    with tempfile.TemporaryDirectory() as folder:
        return {DOCS / "schema" / p.name: p.read_text(encoding="utf-8") for p in write_schemas(Path(folder))}


def show_demo() -> None:
    """Put what `whyspike demo` prints into the README, between its two marks. Takes as long as the demo."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "whyspike", "demo"]
        shown = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
    readme = DOCS.parent / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- diagnosis:begin -->\n")
    _, end, after = rest.partition("<!-- diagnosis:end -->")
    readme.write_text(f"{before}{begin}```\n{shown.rstrip()}\n```\n{end}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write what is generated; with `--check` only say what is not up to date (exit code 1)."""
    if "--demo" in arguments:
        show_demo()
    made = {**pages(), **schemas()}
    old = [p for p in FOLDER.glob("*.md") if p not in made and p.read_text(encoding="utf-8").startswith(WRITTEN)]
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale + old:
            print(f"{path.relative_to(DOCS.parent)} is not up to date; write it again with `./dev docs`")
        return int(bool(stale or old))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    for path in old:
        path.unlink()
    print(f"{len(stale)} written, {len(old)} removed, {len(made) - len(stale)} up to date in docs/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
