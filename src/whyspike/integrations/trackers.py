"""TensorBoard, W&B and MLflow: a diagnosis beside the metrics that the training logged there itself.

`log(diagnosis, writer)` adds the loss on fixed samples, the events, the answer and the verdicts, and attaches the
report. Nothing is logged there unless this is called, and nothing that is there is changed.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whyspike.errors import UnknownTracker
from whyspike.periods import occurrences
from whyspike.types import Diagnosis

__all__ = ["log"]

REPORT = "whyspike-report.html"
PROBE = "whyspike/probe_loss"
BATCH = 1000  # metrics that MLflow takes at once

Point = tuple[str, int, float]  # name, step, value


def log(diagnosis: Diagnosis, to: Any, *, first_step: int = 0) -> None:
    """Log a diagnosis to a tracker; best when the training has ended.

    `whyspike/probe_loss` is the loss on fixed training samples, at the steps at which it was measured;
    `whyspike/event/<kind>` has one point at each event (each occurrence of a periodic one): its peak over the level
    before it, 1 where that is not finite or not known. Answer and verdicts are text; the report is one HTML file:

    - TensorBoard has no artefacts: the report lies in the writer's folder, and the text says where;
    - W&B gets an artefact of type `report`, tables of events and verdicts, and the answer in the run's summary. Its
      steps only grow, so that our points have an axis of their own, `whyspike/step`;
    - MLflow gets the report, the JSON and the Markdown as artefacts in `whyspike/`, and the answer as tags.

    Args:
        to: a `SummaryWriter`, what `wandb.init` returned, an MLflow run, or a Lightning logger of one of these.
        first_step: the tracker's step of the first update: 0 in most loops and in Lightning, 1 in Hugging Face's
            Trainer.

    Raises:
        UnknownTracker: `to` is none of these.
    """
    name, tracker = _known(to)
    with tempfile.TemporaryDirectory() as folder:
        LOGGED[name](diagnosis, tracker, first_step, Path(folder))


def _known(to: Any) -> tuple[str, Any]:
    """Which tracker it is, and what to talk to."""
    if hasattr(to, "experiment") and hasattr(to, "log_metrics"):  # a logger of Lightning
        to = to.experiment if not _of(to.experiment, "mlflow") else (to.experiment, to.run_id)
    if isinstance(to, tuple):
        return "mlflow", to
    if _of(to, "mlflow") and hasattr(getattr(to, "info", None), "run_id"):
        from mlflow import MlflowClient

        return "mlflow", (MlflowClient(), to.info.run_id)
    if _of(to, "wandb") and hasattr(to, "log_artifact"):
        return "wandb", to
    if hasattr(to, "add_scalar") and hasattr(to, "add_text"):  # torch's, or tensorboardX's
        return "tensorboard", to
    raise UnknownTracker(
        f"{type(to).__name__} was given; a SummaryWriter, the run that wandb.init() returned, an MLflow run or a "
        "Lightning logger of one of these is needed: log(diagnosis, writer)"
    )


def _of(to: Any, package: str) -> bool:
    return any(cls.__module__.split(".")[0] == package for cls in type(to).__mro__)


def _points(diagnosis: Diagnosis, first_step: int) -> Iterator[Point]:
    run = diagnosis.record
    probe = None if run is None else run.signals.get("probe")
    if probe is not None:
        for step, value in zip(probe.step.tolist(), probe.value.tolist(), strict=True):
            yield PROBE, step + first_step, value
    for event in diagnosis.events:
        known = event.reported is not None and math.isfinite(event.reported)
        for step in [event.step] if run is None else occurrences(run, event).tolist():
            yield f"whyspike/event/{event.kind}", step + first_step, event.reported if known else 1.0  # type: ignore[misc]


def _tensorboard(diagnosis: Diagnosis, writer: Any, first_step: int, folder: Path) -> None:
    from whyspike.reports.markdown import render

    for name, step, value in _points(diagnosis, first_step):
        writer.add_scalar(name, value, step)
    path = diagnosis.to_html(Path(writer.log_dir) / REPORT, force=True)
    writer.add_text("whyspike/diagnosis", f"{render(diagnosis)}\n\nThe report: `{path}`", first_step)
    writer.flush()


def _wandb(diagnosis: Diagnosis, run: Any, first_step: int, folder: Path) -> None:
    import wandb

    run.define_metric("whyspike/step", hidden=True)
    run.define_metric("whyspike/*", step_metric="whyspike/step")
    for name, step, value in _points(diagnosis, first_step):
        run.log({name: value, "whyspike/step": step})
    answer = diagnosis.answer
    events = [[e.id, e.kind, e.step + first_step, e.period, e.reported, e.state] for e in diagnosis.events]
    verdicts = [[v.cause, v.outcome, v.harm, ", ".join(v.events), v.reason] for v in diagnosis.verdicts]
    run.log(
        {
            "whyspike/events": wandb.Table(["id", "kind", "step", "period", "reported", "state"], events),
            "whyspike/verdicts": wandb.Table(["cause", "outcome", "harm", "events", "reason"], verdicts),
        }
    )
    for key in ("status", "cause", "harm", "sentence"):
        run.summary[f"whyspike/{key}"] = getattr(answer, key)
    artefact = wandb.Artifact(f"whyspike-{run.id}", type="report", description=answer.sentence)
    artefact.add_file(str(diagnosis.to_html(folder / REPORT)))
    run.log_artifact(artefact)


def _mlflow(diagnosis: Diagnosis, to: tuple[Any, str], first_step: int, folder: Path) -> None:
    from mlflow.entities import Metric, RunTag

    from whyspike.reports.markdown import render

    client, run_id = to
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, step, value in _points(diagnosis, first_step)]
    for begin in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[begin : begin + BATCH])
    answer = diagnosis.answer
    tags = {key: getattr(answer, key) for key in ("status", "cause", "harm", "sentence")}
    client.log_batch(run_id, tags=[RunTag(f"whyspike.{k}", v) for k, v in tags.items() if v is not None])
    (folder / "diagnosis.json").write_text(diagnosis.to_json(), encoding="utf-8")
    (folder / "report.md").write_text(render(diagnosis), encoding="utf-8")
    diagnosis.to_html(folder / REPORT)
    client.log_artifacts(run_id, str(folder), "whyspike")


LOGGED = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
