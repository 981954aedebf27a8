"""Handing arms to processes: on this machine by joblib, or on a Ray cluster. What an arm does, neither knows.

Both paths share everything but the submission: a job is a dictionary, `launch` runs it in a process of its own, and its
result comes back to whoever asked, who keeps it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from whyspike.errors import WhySpikeError

On = Literal["joblib", "ray"]
Job = dict[str, Any]
RETRIES = 2  # of a Ray worker that was lost with its arm
# Of a Ray that is started here: no telemetry; and workers of the same priority as this process. Ray's own choice is
# nice 15, which on a machine with anything else to do leaves an arm 3 % of a core (sched(7): 36 shares against 1,024).
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
LEFT_OUT = frozenset({"whyspike-runs", "__pycache__", ".git", ".venv", "venv"})


def check(on: On) -> None:
    """Say before anything is run that there is no Ray.

    Raises:
        WhySpikeError: it is asked for and not installed.
    """
    if on == "ray":
        import importlib.util

        if importlib.util.find_spec("ray") is None:
            raise WhySpikeError("--on ray needs Ray, which is not installed; write: pip install 'whyspike[ray]'")


def at_once(on: On, threads: int | None) -> int:
    """Arms at a time: as many as the cores allow, of this machine or of the cluster. Starts Ray where it is asked."""
    cores = _ray().cluster_resources().get("CPU", 1) if on == "ray" else os.cpu_count() or 1
    return max(1, int(cores) // max(1, threads or 1))


def submit(jobs: Sequence[Job], on: On, workers: int, threads: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the job, its result) as they end. A job that failed or was lost has an "error"."""
    if on == "ray":
        yield from _on_ray(jobs, threads)
        return
    from joblib import Parallel, delayed

    # The threads wait for processes.
    parallel = Parallel(n_jobs=workers, backend="threading", return_as="generator_unordered")
    yield from parallel(delayed(_numbered)(k, job) for k, job in enumerate(jobs))  # type: ignore[misc]


def _numbered(number: int, job: Job) -> tuple[int, dict[str, Any]]:
    return number, launch(job)


def _on_ray(jobs: Sequence[Job], threads: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    ray = _ray()
    remote = ray.remote(num_cpus=max(1, threads or 1), max_retries=RETRIES)(launch)
    waiting = {remote.remote(job): k for k, job in enumerate(jobs)}
    while waiting:
        (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
        try:
            result = ray.get(ended)
        except ray.exceptions.RayError as error:
            result = {"error": f"its Ray worker was lost ({type(error).__name__})"}
        yield waiting.pop(ended), result


def _ray() -> Any:
    """Ray, started on this machine, or connected to the cluster that RAY_ADDRESS names. It ends with the process.

    Raises:
        WhySpikeError: it could not be started.
    """
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    import ray  # type: ignore[import-not-found]

    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WhySpikeError(f"Ray could not be started ({said})") from error
    return ray


def launch(job: Job) -> dict[str, Any]:
    """Run one job in a fresh process, in a scratch folder that is thrown away, and give back its result."""
    import subprocess
    import tempfile

    cwd = Path(job["cwd"])
    if not cwd.is_dir():
        return {"error": f"there is no folder {cwd} where it was to run; every worker needs it at the same place"}
    with tempfile.TemporaryDirectory(prefix="whyspike-arm-", ignore_cleanup_errors=True) as scratch:
        folder, result = Path(scratch) / "run", Path(scratch) / "result.json"
        _furnish(folder, cwd)
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps({**job, "folder": str(folder), "result": str(result)}), encoding="utf-8")
        environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONSAFEPATH": "", "WHYSPIKE_DISABLE": ""}
        made = subprocess.run(  # noqa: S603  this Python, and the script that was run before
            [sys.executable, "-m", "whyspike.arm", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
        if result.is_file():
            return json.loads(result.read_text(encoding="utf-8"))
    said = made.stderr.strip().splitlines()
    return {"error": f"its process ended with {made.returncode} ({said[-1] if said else 'no message'})"}


def _furnish(folder: Path, cwd: Path) -> None:
    """The scratch folder: links to what lies in the script's own, so that it finds what it reads."""
    folder.mkdir(parents=True)
    for entry in cwd.iterdir():
        if entry.name not in LEFT_OUT:
            (folder / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
