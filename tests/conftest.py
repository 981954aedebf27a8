"""What every test shares: one thread, an empty working folder on request, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from whyspike.experiment import Experiment
    from whyspike.training import Training

ROOT = Path(__file__).resolve().parents[1]

# Replays are exact for a fixed thread count; the workers of the tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def whyspike(tmp_path: Path) -> Command:
    """Run the command line in a process of its own, in an empty folder: `whyspike("list", "--format", "json")`."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WHYSPIKE_")}
        return subprocess.run(
            [sys.executable, "-m", "whyspike", *arguments],
            cwd=cwd,
            env={**clean, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: replays are exact for a fixed thread count."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recorded(made: Training, path: Path) -> Experiment:
    """A training that was run and recorded closely, ready to be replayed."""
    from whyspike.experiment import Experiment
    from whyspike.observe import observe
    from whyspike.readers import read
    from whyspike.record import watch
    from whyspike.replay import Subject
    from whyspike.rerun import train_recorded

    recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=path, closely=True)
    with recorder as rec:
        train_recorded(made, rec)
    run = read(path)
    subject = Subject.of(recorder, run)
    assert subject is not None
    return Experiment(subject, observe(run, subject))
