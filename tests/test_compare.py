"""Two runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from whyspike.compare import compare
from whyspike.pipeline import diagnose


def log(path: Path, data_seed: int, own_seed: int, *, spike: int | None = None, n: int = 600) -> Path:
    """A loss whose noise is mostly that of the data, which `data_seed` draws."""
    data, own = (np.random.default_rng(s).standard_normal(n) for s in (data_seed, own_seed))
    loss = np.exp(-np.arange(n) / n + 0.05 * (0.9 * data + 0.4 * own))
    if spike is not None:
        loss[spike] *= 20
    path.write_text("step,loss\n" + "\n".join(f"{k},{v}" for k, v in enumerate(loss)), encoding="utf-8")
    return path


def test_the_same_data_in_the_same_order(tmp_path: Path) -> None:
    a = diagnose(log(tmp_path / "a.csv", 0, 1, spike=400))
    made = compare(a, diagnose(log(tmp_path / "b.csv", 0, 2, spike=400)))
    assert made["correlation"] == pytest.approx(0.83, abs=0.06)
    assert made["p_value"] <= 0.01
    assert made["by_chance"] < 0.3
    assert made["shared_events"] == [400]
    assert "the data are the reason and not the optimizer" in made["sentence"]
    alone = compare(a, diagnose(log(tmp_path / "c.csv", 0, 3)))
    assert "what they do not share is not in the data" in alone["sentence"]


def test_other_data(tmp_path: Path) -> None:
    made = compare(diagnose(log(tmp_path / "a.csv", 0, 1)), diagnose(log(tmp_path / "b.csv", 7, 1)))
    assert abs(made["correlation"]) < 0.3
    assert "nothing in common" in made["sentence"]


def test_too_little_in_common(tmp_path: Path) -> None:
    made = compare(diagnose(log(tmp_path / "a.csv", 0, 1)), diagnose(log(tmp_path / "b.csv", 0, 1, n=40)))
    assert made["correlation"] is None
    assert "40 steps in common; at least 64" in made["sentence"]


def test_the_command_compares_two_logs(whyspike: Command, tmp_path: Path) -> None:
    a, b = (str(log(tmp_path / f"{k}.csv", 0, k, spike=300)) for k in (1, 2))
    said = json.loads(whyspike("diagnose", a, b, "--format", "json").stdout)
    assert len(said["runs"]) == 2
    assert said["comparison"]["shared_events"] == [300]
    assert "comparison: Both runs draw the same data" in whyspike("diagnose", a, b).stdout
