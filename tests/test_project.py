"""The project as people expect it: what it promises on paper is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import whyspike

HEAVY = ("torch", "scipy", "polars", "numpy", "rich", "cyclopts", "msgspec", "jinja2")


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('MODULES', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name.split(".")[0] for name in told.rpartition("MODULES")[2].split()}


def test_import_loads_the_standard_library_alone():
    added = loaded_after("import whyspike") - loaded_after("pass")
    assert added - set(sys.stdlib_module_names) == {"whyspike"}


def test_list_loads_nothing_heavy():
    loaded = loaded_after("from whyspike.cli import main; assert main(['list']) == 0")
    assert loaded.isdisjoint({"torch", "scipy", "polars"})


def test_every_public_name_is_there():
    for name in whyspike.__all__:
        assert getattr(whyspike, name) is not None
    assert set(whyspike.__all__) <= set(dir(whyspike))
    assert callable(whyspike.diagnose)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = whyspike.nonsense


def tracked(root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return [path for line in listed.stdout.splitlines() if (path := root / line).is_file()]


def test_no_path_of_anyones_machine(root):
    private = re.compile(r"/(?:home|Users)/\w+|/root/|C:\\Users")
    guilty = []
    for path in tracked(root):
        if path.suffix in (".py", ".md", ".toml", ".html", ".json", ".yml", "") and path != Path(__file__):
            text = path.read_text(encoding="utf-8", errors="replace")
            guilty += [f"{path.relative_to(root)}: {found}" for found in private.findall(text)]
    assert guilty == []


def test_no_lock_file_and_no_pickle(root):
    names = {path.name for path in tracked(root)}
    assert "uv.lock" not in names
    for path in (root / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import pickle|from pickle)", text, re.MULTILINE), path


def test_torch_is_an_extra_and_nothing_pulls_torchvision(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    core = {re.split(r"[^\w.-]", d)[0] for d in project["dependencies"]}
    assert core == {
        *("numpy", "scipy", "polars", "rich", "jinja2", "msgspec", "cyclopts", "safetensors", "joblib"),
    }
    extras = project["optional-dependencies"]
    assert set(extras) >= {"torch", "lightning", "huggingface", "keras", "ray", "tensorboard", "wandb", "mlflow"}
    everything = " ".join(core) + str(extras)
    assert not re.search("torchvision|curvlinops|backpack", everything)
    for group in ("test", "dev"):
        assert all("==" in d or d.startswith("whyspike[") for d in extras[group]), f"{group} is not pinned"


# --------------------------------------------------------------------------- README and CONTRIBUTING


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_commands_of_the_pages_exist(page, root):
    text = (root / page).read_text(encoding="utf-8")
    dev = (root / "dev").read_text(encoding="utf-8")
    told = [line.partition("#")[0].split() for block in blocks(text, "sh") for line in block.splitlines()]
    told = [words for words in told if words]
    assert told, "a page without a command"
    from whyspike.cli import app

    for words in told:
        if words[0] == "./dev":
            assert f'"{words[1]}": ' in dev, words
        elif words[0] == "whyspike":
            assert words[1] in set(app), words
            ours = words[:2] if words[1] == "run" else words  # what follows a script is the script's
            options = re.findall(r"^ *(?:async )?def |--[a-z-]+", " ".join(ours))
            assert all(o in ("--format", "--force", "--list", "--budget", "--healthy", "--seed") for o in options)
        else:
            assert words[0] in ("pip", "git", "cd"), words


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_links_of_the_pages_lead_somewhere(page, root):
    text = (root / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert (root / link).exists(), f"{page} links to {link}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_code_of_the_pages_is_python(page, root):
    for block in blocks((root / page).read_text(encoding="utf-8"), "python"):
        compile(block, page, "exec")


def test_the_walk_through_makes_a_cause_and_its_case(root):
    from whyspike.cause import SECTIONS, Observation
    from whyspike.types import Run

    case_code, cause_code = blocks((root / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python")
    case_file: dict[str, object] = {"__name__": "walk_through_case"}
    exec(case_code, case_file)
    case = case_file["CASE"]
    sick, healthy = case.sick(0), case.healthy(0)
    batch = next(iter(sick.loader))
    ratio = sick.loss_fn(sick.model, batch) / healthy.loss_fn(sick.model, batch)
    assert ratio.item() == pytest.approx(32, rel=1e-4)  # a sum over a mean, for a batch of 32

    cause_file: dict[str, object] = {"__name__": "walk_through_cause"}
    exec(cause_code, cause_file)
    cause = cause_file["SumReduction"]()
    assert cause.id == case.cause == "sum-reduction"
    assert all(cause.section(name) for name in SECTIONS)
    nothing = Run(source="", reader="", step=np.arange(3), loss=np.ones(3))
    seen = Observation(run=nothing, events=())
    assert cause.signature(seen) is None
    for change in [*cause.interventions(seen, None), cause.placebo(seen, None)]:
        assert change.words
    assert cause.cures(seen)[0].cure.applicability == "safe"


def test_the_first_screen_has_the_two_commands_and_a_diagnosis(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    first = "\n".join(text.splitlines()[:60])
    assert "./dev demo" in first
    assert "./dev test" in first
    assert "<!-- diagnosis:begin -->" in first
    shown = text.partition("<!-- diagnosis:begin -->")[2].partition("<!-- diagnosis:end -->")[0]
    assert "confirmed[double-averaged-loss]" in shown


# --------------------------------------------------------------------------- ./dev and the wheel


def test_dev_says_what_it_can_do(root):
    help_text = subprocess.run([sys.executable, root / "dev", "--help"], capture_output=True, text=True)
    assert help_text.returncode == 0
    assert all(f"./dev {name}" in help_text.stdout for name in ("demo", "test", "bench", "lint", "docs"))
    wrong = subprocess.run([sys.executable, root / "dev", "tset"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no command named 'tset'" in wrong.stderr
    for given, said in (
        (["test", "--extra", "logers"], "no extra named 'logers'"),
        (["test", "--extra"], "needs the name"),
    ):
        wrong = subprocess.run([sys.executable, root / "dev", *given], capture_output=True, text=True)
        assert wrong.returncode == 1
        assert said in wrong.stderr


def test_dev_and_ci_are_executable(root):
    assert os.access(root / "dev", os.X_OK)
    assert os.access(root / ".ci" / "run", os.X_OK)
    assert "./dev test" in (root / ".ci" / "run").read_text()


def test_dev_is_readable_by_an_old_python(root):
    import ast

    ast.parse((root / "dev").read_text(), feature_version=(3, 7))


@pytest.mark.slow
def test_the_wheel_holds_the_templates(root, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, root],
        capture_output=True,
        text=True,
    )
    if "No matching distribution found for hatchling" in made.stderr:
        pytest.skip("the build backend cannot be had here")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("whyspike-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = root / "src" / "whyspike"
    wanted = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.relative_to(package.parent).as_posix() for p in wanted} <= inside
    assert "whyspike/py.typed" in inside
    assert not [name for name in inside if name.startswith("tests")]
