"""The command line as a user meets it: what it prints where, and its exit codes."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from whyspike import cli, output, targets
from whyspike.cause import catalogue
from whyspike.errors import BadTraining, NotReplayable, OutputExists, WhySpikeError
from whyspike.types import Answer, Diagnosis, Finding, Note, Preflight, RunInfo, Verdict

COMMANDS = ("demo", "run", "diagnose", "prove", "check", "explain", "list")

# --------------------------------------------------------------------------- help and usage


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_at_most_eight_options_each_explained(name, capsys):
    function = {"list": cli.list_causes}.get(name) or getattr(cli, name)
    options = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert len(options) <= 8
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: whyspike {name}")
    for option in options:
        assert f"--{option.name.replace('_', '-')}" in text
        assert f"{option.name}: " in (function.__doc__ or "")


def test_version(capsys):
    import whyspike

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == whyspike.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["diagnose"],
        ["diagnose", "here", "--format", "pdf"],
        ["list", "--nonsense"],
        ["prove", "a.py:f", "--budget", "soon"],
        ["prove", "a.py:f", "--budget", "0"],
        ["prove", "a.py:f", "--budget", "nan"],
        ["prove", "nowhere.py:f"],
        ["check", "nowhere.py:f"],
        ["explain", "no-such-cause"],
        ["diagnose", "-"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_says_so_on_stderr_alone(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip()
    assert "Traceback" not in said.err


def test_a_fault_of_ours_is_neither_a_finding_nor_wrong_usage(capsys, monkeypatch):
    monkeypatch.setattr("whyspike.cause.catalogue", lambda: 1 / 0)
    assert cli.main(["list"]) == 3
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "please open an issue" in said


def test_a_missing_extra_is_named(capsys, monkeypatch):
    def without_torch():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("whyspike.cause.catalogue", without_torch)
    assert cli.main(["list"]) == 2
    assert "pip install 'whyspike[torch]'" in capsys.readouterr().err


# --------------------------------------------------------------------------- the catalogue


def test_list_as_json_is_the_contract(capsys):
    assert cli.main(["list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(catalogue())
    for row in rows:
        assert set(row) == {"name", "summary", "family", "status"}
        assert row["status"] in ("stable", "preview")


@pytest.mark.parametrize("form", ["full", "markdown", "concise"])
def test_list_has_one_line_per_cause(form, capsys):
    assert cli.main(["list", "--format", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue()) + (0 if form == "concise" else 2)
    for cause in catalogue().values():
        assert sum(cause.id in line for line in lines) >= 1


def test_explain_tells_the_whole_story(capsys):
    assert cli.main(["explain", "double-averaged-loss"]) == 0
    text = capsys.readouterr().out
    for heading in ("What happens", "How it looks", "How we test it", "What to do", "References"):
        assert f"## {heading}" in text
    assert "whyspike demo double-averaged-loss" in text


def test_explain_knows_aliases(capsys):
    for cause in catalogue().values():
        for alias in cause.aliases:
            assert cli.main(["explain", alias]) == 0
            assert capsys.readouterr().out.startswith(f"# {cause.id}\n")


def test_explain_as_json(capsys):
    assert cli.main(["explain", "small-last-batch", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "small-last-batch"
    assert told["sections"]["What happens"]


def test_an_unknown_cause_gets_the_nearest_names(capsys):
    assert cli.main(["explain", "double-average-loss"]) == 2
    assert "double-averaged-loss" in capsys.readouterr().err


# --------------------------------------------------------------------------- the exit code of a diagnosis


def diagnosis(status, *verdicts):
    return Diagnosis(
        run=RunInfo(source="run", reader="whyspike", steps=100),
        answer=Answer(status=status, cause=None, harm=None, sentence="a sentence"),
        verdicts=tuple(Verdict(cause="x", outcome=outcome, harm=harm, events=()) for outcome, harm in verdicts),
    )


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (diagnosis("healthy"), 0),
        (diagnosis("explained", ("confirmed", "none")), 0),
        (diagnosis("explained", ("confirmed", "none"), ("refuted", "damaging")), 0),
        (diagnosis("explained", ("confirmed", "none"), ("likely", "damaging")), 1),
        (diagnosis("explained", ("likely", "cosmetic")), 1),
        (diagnosis("unexplained"), 1),
        (diagnosis("cannot-say"), 1),
    ],
)
def test_exit_code(found, code):
    assert output.exit_code(found) == code


# --------------------------------------------------------------------------- targets


GOOD = """
from torch import nn, optim
import whyspike
import neighbour

def make_training(seed=0):
    model = nn.Linear(neighbour.WIDTH, 1)
    return whyspike.Training(
        model=model,
        optimizer=optim.SGD(model.parameters(), lr=0.1),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        loader=[],
        epochs=1,
    )

NUMBER = 3
"""


@pytest.fixture
def train_py(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("/nonexistent")  # restores sys.path afterwards
    modules = set(sys.modules)
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    file = tmp_path / "train_target.py"
    file.write_text(GOOD)
    yield file
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_target_is_loaded_with_its_neighbours(train_py):
    from whyspike.training import build

    made = build(targets.resolve(f"{train_py}:make_training"))
    assert made.epochs == 1
    assert sum(p.numel() for p in made.model.parameters()) == 4


def test_a_target_may_have_the_name_of_a_standard_module(train_py):
    other = train_py.with_name("random.py")
    other.write_text("def make():\n    return 1\n")
    assert targets.resolve(f"{other}:make")() == 1
    import random

    assert random.random() < 1


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        (GOOD, "make_trainin", "has no function named 'make_trainin'; it defines make_training"),
        (GOOD, "NUMBER", "NUMBER in .* is a int"),
        (GOOD, "", "has no function named ''"),
        ("x = 1\ny = x / 0\n", "make", r"raised ZeroDivisionError: division by zero"),
        ("x = 1\ndef (:\n", "make", r"line 2, raised SyntaxError"),
        ("import sys\nsys.exit(4)\n", "make", r"sys\.exit\(4\).*__main__"),
    ],
)
def test_a_bad_target_is_explained(train_py, text, name, sentence):
    train_py.write_text(text)
    with pytest.raises(BadTraining, match=sentence):
        targets.resolve(f"{train_py}:{name}")


@pytest.mark.parametrize("text", ["x = 1\ny = x / 0\n", "def make():\n    return 1 / 0\n"])
def test_the_line_of_the_user_that_raised_is_named(train_py, text, capsys):
    train_py.write_text(text)
    assert cli.main(["check", f"{train_py}:make"]) == 2
    said = capsys.readouterr().err
    assert said.strip().endswith(f"({train_py}, line 2)")
    assert said.count("\n") == 1


def test_a_target_that_is_no_function(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("")
    with pytest.raises(BadTraining, match="names a file and no function"):
        targets.resolve(str(script))
    with pytest.raises(BadTraining, match="there is no file or folder named nowhere"):
        targets.resolve("nowhere")
    with pytest.raises(NotReplayable, match="holds no recorded run"):
        targets.resolve(str(tmp_path))


def test_a_recorded_run_as_target(tmp_path, train_py):
    run = tmp_path / "run"
    run.mkdir()
    header = run / "run.json"
    header.write_text(json.dumps({"target": f"{train_py}:make_training"}))
    assert targets.resolve(str(run)).__name__ == "make_training"
    header.write_text("{}")
    with pytest.raises(NotReplayable, match="does not name what it trained"):
        targets.resolve(str(run))
    header.write_text("{")
    with pytest.raises(NotReplayable, match="cannot be read"):
        targets.resolve(str(run))


# --------------------------------------------------------------------------- files


def test_an_output_is_not_overwritten(tmp_path, capsys):
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    assert cli.main(["diagnose", str(tmp_path), "-o", str(mine)]) == 2
    assert "--force" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    with pytest.raises(OutputExists):
        output.put("yours", mine, force=False)
    output.put("yours", mine, force=True)
    assert mine.read_text() == "yours\n"


def test_an_output_that_cannot_be(tmp_path):
    with pytest.raises(WhySpikeError, match="is a folder"):
        output.claim(tmp_path, force=True)
    with pytest.raises(WhySpikeError, match="does not exist"):
        output.claim(tmp_path / "no" / "a.html", force=False)


def test_free_name(tmp_path):
    page = tmp_path / "whyspike-x.html"
    assert output.free_name(page) == page
    page.touch()
    assert output.free_name(page) == tmp_path / "whyspike-x-2.html"
    (tmp_path / "whyspike-x-2.html").touch()
    assert output.free_name(page) == tmp_path / "whyspike-x-3.html"


@pytest.mark.parametrize(
    ("asked", "file", "form"),
    [
        (None, None, "full"),
        (None, "a.HTML", "html"),
        (None, "a.md", "markdown"),
        (None, "a.txt", "full"),
        ("json", "a.html", "json"),
    ],
)
def test_the_form_follows_the_name_of_the_file(asked, file, form):
    assert output.choose(asked, file and Path(file)) == form


# --------------------------------------------------------------------------- check's result

FOUND = Preflight(
    findings=(Finding(cause="sum-reduction", text="100% wrong\nhere", observed="0.0", expected="1.0", cure="mean"),),
    notes=(Note(id="small-last-batch", text="the last batch has 2 of 32"),),
)


@pytest.mark.parametrize("form", ["full", "concise", "json", "markdown", "github"])
def test_a_check_shows_findings_and_notes(form):
    text = output.preflight_text(FOUND, form)
    assert "sum-reduction" in text
    assert "the last batch has 2 of 32" in text
    if form in ("full", "json", "markdown"):
        assert all(word in text for word in ("0.0", "1.0", "mean"))
    if form == "github":
        assert "::warning title=whyspike sum-reduction::100%25 wrong%0Ahere" in text
    if form == "json":
        assert json.loads(text)["findings"][0]["cause"] == "sum-reduction"


def test_a_check_that_finds_nothing_says_so():
    assert "nothing found" in output.preflight_text(Preflight(), "full")
    with pytest.raises(WhySpikeError, match="no pictures"):
        output.preflight_text(FOUND, "html")


# --------------------------------------------------------------------------- as a process


def test_progress_waits_for_a_second_and_stays_off_stdout(capsys):
    with output.Progress() as progress:
        progress("training", 0.1)
        assert capsys.readouterr() == ("", "")
        progress.after_s = 0
        progress("training", 0.5)
        progress("training", 0.6)  # within the five seconds between two lines
    assert capsys.readouterr() == ("", "whyspike: training (50%)\n")


def test_list_as_a_process_has_no_colours_when_told(whyspike):
    result = whyspike("list", NO_COLOR="1", FORCE_COLOR="1")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    line = f"'{sys.executable}' -m whyspike list; echo $? >&2"
    result = subprocess.run(f"({line}) | head -c 1", shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert result.stderr.strip() == "0"


def test_a_folder_that_is_no_run_is_a_sentence(whyspike, tmp_path):
    result = whyspike("diagnose", str(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_demo_writes_its_report_beside_the_user(whyspike, tmp_path):
    result = whyspike("demo", "--format", "json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["answer"]["cause"] == "double-averaged-loss"
    page = tmp_path / "whyspike-double-averaged-loss.html"
    assert page.name in result.stderr
    assert "double-averaged-loss" in page.read_text(encoding="utf-8")
