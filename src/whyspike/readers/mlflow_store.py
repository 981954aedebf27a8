"""Reads MLflow's stores: a run's folder with `metrics/<name>` (rows of `time value step`), or the SQLite file of all runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.logs import series
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, number
from whyspike.types import Run

NAME = "mlflow"
SQLITE = b"SQLite format 3\x00"


def sniff(source: Source) -> float:
    if source.is_folder:
        return 0.95 if (source.path / "meta.yaml").is_file() and (source.path / "metrics").is_dir() else 0.0
    return 0.95 if source.head.startswith(SQLITE) and b"latest_metrics" in source.content else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of a folder, or all runs of a database that have a curve.

    Raises:
        UnreadableRun: there is no metric, or none that is called a training loss.
    """
    tables = []
    problem = None
    for name, metrics in _stored(source).items():
        try:
            tables.append(series.table(metrics, source.name, asked, name=name))
        except UnreadableRun as error:
            problem = error
    if not tables:
        raise problem or UnreadableRun(
            f"{source.name} holds no metric; write mlflow.log_metric('loss', loss, step=step)"
        )
    return _of(tables, source, asked)


def _of(tables: list[Table], source: Source, asked: Asked) -> tuple[Run, ...]:
    return runs(tables, source=source.name, reader=NAME, asked=asked)


def _stored(source: Source) -> dict[str, dict[str, list[tuple[float, float]]]]:
    if source.is_folder:
        folder = source.path / "metrics"
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {"": {str(p.relative_to(folder)): _of_file(p) for p in files}}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with closing(sqlite3.connect(f"file:{Path(source.path).resolve()}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT run_uuid, key, step, value, is_nan FROM metrics ORDER BY run_uuid, timestamp, step"
        )
        for run, key, step, value, is_nan in rows:
            points = found.setdefault(str(run), {}).setdefault(str(key), [])
            points.append((float(step), float("nan") if is_nan else float(value)))
    return found if len(found) != 1 else {"": next(iter(found.values()))}


def _of_file(path: Path) -> list[tuple[float, float]]:
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split()
        value = number(parts[1]) if len(parts) > 1 else None
        if value is not None:
            points.append((float(parts[2]) if len(parts) > 2 else float(len(points)), value))
    return points
