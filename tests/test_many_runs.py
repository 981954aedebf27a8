"""Several runs at once: a folder of them, a log that holds several, two that are compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from report_examples import cannot_say, explained, healthy, unexplained

from whyspike import reports
from whyspike.errors import WhySpikeError
from whyspike.reports import _several, terminal
from whyspike.types import Diagnosis


def at(diagnosis: Diagnosis, source: str) -> Diagnosis:
    return replace(diagnosis, run=replace(diagnosis.run, source=source))


def several() -> list[Diagnosis]:
    named = {"runs/a/log.csv": explained, "runs/b/log.csv": healthy, "runs/b/c.csv": unexplained, "runs/d": cannot_say}
    return [at(make(), source) for source, make in named.items()]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["logs/a/m.csv", "logs/b/c/m.csv", "logs/m.csv"], ["a/m.csv", "b/c/m.csv", "m.csv"]),
        (["t.csv", "t.csv"], ["t.csv, run 1", "t.csv, run 2"]),
        (["x/t.csv", "x/t.csv", "x/u.csv"], ["t.csv, run 1", "t.csv, run 2", "u.csv"]),
        (["two.csv: a", "two.csv: b"], ["two.csv: a", "two.csv: b"]),
        (["/one/a.csv", "/other/a.csv"], ["one/a.csv", "other/a.csv"]),
        (["standard input", "/other/a.csv"], ["standard input", "/other/a.csv"]),
        (["../a.csv", "/other/a.csv"], ["../a.csv", "/other/a.csv"]),
    ],
)
def test_a_run_is_called_by_what_sets_it_apart(sources: list[str], names: list[str]) -> None:
    assert _several.names([at(healthy(), source) for source in sources]) == names


def test_the_list_comes_first_and_each_diagnosis_has_its_heading() -> None:
    text = reports.render_many(several())
    first, *lines = text.split("\n\n")[0].splitlines()
    assert first == "4 runs: 1 explained, 1 unexplained, 1 cannot-say, 1 healthy"
    assert [line.split()[0] for line in lines] == ["a/log.csv", "b/log.csv", "b/c.csv", "d"]
    assert re.search(r" 396 steps  confirmed\[double-averaged-loss\]: the loss is divided by the batch", lines[0])
    assert re.search(r" unexplained: 2 spikes in 396 steps; the highest at step 300", lines[2])
    assert all(len(line) <= 100 for line in lines)
    for name, diagnosis in zip(_several.names(several()), several(), strict=True):
        assert f"\n\n== {name} ==\n{reports.render(diagnosis)}" in text
    coloured = terminal.render_many(several(), color=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == text.splitlines() != coloured.splitlines()


def test_every_line_says_whose_it_is() -> None:
    for of in ("concise", "github"):
        single = [line for d in several() for line in reports.render(d, of).splitlines()]
        made = reports.render_many(several(), of, {"sentence": "They differ."}).splitlines()
        assert len(made) == len(single) + 1
        assert "They differ." in made[-1]
        names = [n for n, d in zip(_several.names(several()), several(), strict=True)
                 for _ in reports.render(d, of).splitlines()]  # fmt: skip
        for line, name, alone in zip(made, names, single, strict=False):
            assert line.replace(f"{name}: ", "", 1) == alone
            assert line.startswith(f"{name}: ") if of == "concise" else f"::{name}: " in line


def test_markdown_has_a_table_and_a_heading_for_each() -> None:
    text = reports.render_many(several(), "markdown", {"sentence": "They differ."})
    assert "| a/log.csv | 396 steps | confirmed\\[double-averaged-loss\\]: the loss is divided" in text
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == _several.names(several())
    assert text.endswith("**Comparison**: They differ.")


def test_a_page_of_html_shows_one() -> None:
    with pytest.raises(WhySpikeError, match="4 runs were read, and a page of html shows one; name one of them"):
        reports.render_many(several(), "html")


def log(path: Path, seed: int, at: int | None = None) -> str:
    loss = np.exp(-np.linspace(0, 1, 400) + 0.05 * np.random.default_rng(seed).standard_normal(400))
    if at is not None:
        loss[at] *= 20
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("step,loss\n" + "".join(f"{k},{v:.5f}\n" for k, v in enumerate(loss)))
    return str(path)


def test_a_folder_is_listed_and_what_could_not_be_read_is_said(whyspike: Command, tmp_path: Path) -> None:
    log(tmp_path / "logs/a/m.csv", 1)
    log(tmp_path / "logs/b.csv", 2, at=300)
    (tmp_path / "logs/data.csv").write_text("age,height\n" + "30,1.8\n" * 50)
    made = whyspike("diagnose", "logs")
    assert made.returncode == 1
    lines = made.stdout.splitlines()
    assert lines[0] == "2 runs: 1 unexplained, 1 healthy"
    assert re.match(r"  a/m\.csv  400 steps  healthy: ", lines[1])
    assert re.match(r"  b\.csv    400 steps  unexplained: 1 spike in 400 steps, at step 300", lines[2])
    assert [line for line in lines if line.startswith("==")] == ["== a/m.csv ==", "== b.csv =="]
    said = made.stderr.splitlines()
    for name in ("a/m.csv", "b.csv"):
        assert any(f"logs/{name}: 400 values read as csv; loss: column 'loss'" in line for line in said)
    assert any(line.startswith("whyspike: left out: logs/data.csv ") for line in said)
    assert whyspike("diagnose", "logs", "-o", "all.json").returncode == 1
    document = json.loads((tmp_path / "all.json").read_text())
    assert set(document) == {"schema_version", "runs", "comparison"}
    assert [run["run"]["source"] for run in document["runs"]] == ["logs/a/m.csv", "logs/b.csv"]


def test_two_logs_are_listed_and_compared(whyspike: Command, tmp_path: Path) -> None:
    made = whyspike("diagnose", log(tmp_path / "a.csv", 1), log(tmp_path / "b.csv", 2), "--format", "concise")
    assert [line.split(": ")[0] for line in made.stdout.splitlines()] == ["a.csv", "b.csv", "comparison"]
