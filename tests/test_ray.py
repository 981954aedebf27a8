"""Arms on Ray: what joblib gives, and a worker that is lost takes no other arm with it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_arms import arms_in, proven, source
from test_scripts import loop, python, written

from whyspike import launch
from whyspike.arms import Wanted
from whyspike.interventions import ScaleLr, SkipBatch
from whyspike.seams import BASELINE

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory) -> Iterator[None]:
    """Two workers on this machine. Ray writes a token into HOME."""
    home, os.environ["HOME"] = os.environ.get("HOME"), str(tmp_path_factory.mktemp("home"))
    os.environ |= launch.RAY
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    if home is not None:
        os.environ["HOME"] = home


ARMS = [
    Wanted(intervention=BASELINE),
    Wanted(intervention=SkipBatch("the last batch dropped", "partial")),
    Wanted(intervention=ScaleLr(0.5, where="always"), seed=2),
]


def test_arms_on_ray_are_those_on_joblib(tmp_path):
    script = written(tmp_path, loop())
    one = source(tmp_path / "a", script, "2", workers=2)
    other = replace(source(tmp_path / "b", script, "2"), on="ray", workers=None)
    assert other.at_once == 2
    assert one.results(ARMS) == other.results(ARMS)
    priority = ray.remote(lambda: os.nice(0))
    assert ray.get(priority.remote()) == os.nice(0)  # not behind everything else on the machine


def test_a_lost_worker_is_replaced_and_what_has_ended_is_kept(tmp_path):
    flag = tmp_path / "flag"
    flag.write_text("there")
    # Arms whose last batches are dropped never see 6 samples. The worker of Ray is the parent of the arm's process.
    dies = (
        f"len(a) == 6 and epoch == 1 and __import__('os').path.exists({str(flag)!r}) and "
        f"(__import__('os').unlink({str(flag)!r}), __import__('os').kill(__import__('os').getppid(), 9))"
    )
    where = replace(source(tmp_path, written(tmp_path, loop(dies)), "3"), on="ray", workers=None)
    made = where.results(ARMS)
    assert not flag.exists()
    assert len(made[0]["loss"]) == 27
    assert len(list((tmp_path / "arms").glob("?" * 16 + ".json"))) == 3


def test_prove_on_ray(tmp_path):
    made = subprocess.run(proven(tmp_path, "--on", "ray"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 1, made.stderr
    (verdict,) = [v for v in json.loads(made.stdout)["verdicts"] if v["cause"] == "sum-reduction"]
    assert verdict["outcome"] == "confirmed"
    assert len(arms_in(tmp_path)) >= 3


def test_a_function_is_not_handed_to_ray(tmp_path):
    written(tmp_path, "def make(): ...")
    made = python(tmp_path, "-m", "whyspike", "prove", "--on", "ray", "train.py:make")
    assert made.returncode == 2
    assert "--on ray runs scripts; train.py:make is a function" in made.stderr
