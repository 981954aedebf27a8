"""Reads MLflow's stores: a run's folder with `metrics/<name>` (rows of `time value step`), or the SQLite file of all runs."""

from __future__ import annotations

from pathlib import Path

from whyspike.errors import UnreadableRun
from whyspike.logs import series, sqlite
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Note, Run

NAME = "mlflow"
Metrics = dict[str, list[tuple[float, float]]]
QUERY = "SELECT run_uuid, key, step, value, is_nan FROM metrics ORDER BY run_uuid, timestamp, step"


def sniff(source: Source) -> float:
    if source.is_folder:
        return 0.95 if (source.path / "meta.yaml").is_file() and (source.path / "metrics").is_dir() else 0.0
    return 0.95 if source.head.startswith(sqlite.MAGIC) and b"latest_metrics" in source.content else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of a folder, or all runs of a database that have a curve.

    Raises:
        UnreadableRun: there is no metric, or none that is called a training loss.
    """
    tables = []
    problem = None
    stored, notes = _of_folder(source.path / "metrics") if source.is_folder else _of_database(source)
    for name, metrics in stored.items():
        try:
            tables.append(series.table(metrics, source.name, asked, name=name, notes=notes))
        except UnreadableRun as error:
            problem = error
    if not tables:
        raise problem or UnreadableRun(
            f"{source.name} holds no metric; write mlflow.log_metric('loss', loss, step=step)"
        )
    return runs(tables, source=source.name, reader=NAME, asked=asked)


def _of_folder(folder: Path) -> tuple[dict[str, Metrics], list[Note]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {"": {str(p.relative_to(folder)): _of_file(p) for p in files}}, []


def _of_database(source: Source) -> tuple[dict[str, Metrics], list[Note]]:
    found: dict[str, Metrics] = {}
    rows, notes = sqlite.select(source, QUERY)
    for run, key, step, value, is_nan in rows:
        at, held = number(step), float("nan") if is_nan else number(value)
        if at is not None and held is not None:
            found.setdefault(str(run), {}).setdefault(str(key), []).append((at, held))
    return (found if len(found) != 1 else {"": next(iter(found.values()))}), notes


def _of_file(path: Path) -> list[tuple[float, float]]:
    points = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split()
        value = number(parts[1]) if len(parts) > 1 else None
        step = number(parts[2]) if len(parts) > 2 else float(len(points))
        if value is not None and step is not None:
            points.append((step, value))
    return points
