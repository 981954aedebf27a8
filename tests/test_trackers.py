"""A diagnosis beside the user's own metrics: what real trackers wrote is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_examples import explained

from whyspike.errors import UnknownTracker
from whyspike.integrations.trackers import PROBE, REPORT, log
from whyspike.types import Diagnosis

others = pytest.mark.filterwarnings("ignore")  # what other projects warn of is theirs
OWN = np.exp(-np.linspace(0, 1, 40))  # what the training logs itself


@pytest.fixture
def made() -> Diagnosis:
    return explained()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, so that no tool writes into the real one; nothing goes over a network."""
    for name, value in (("HOME", tmp_path), ("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def the_probe(made: Diagnosis) -> dict[int, float]:
    assert made.record is not None
    probe = made.record.signals["probe"]
    return dict(zip(probe.step.tolist(), probe.value.tolist(), strict=True))


def check_report(path: Path, made: Diagnosis) -> None:
    assert made.answer.sentence.split(":")[0] in path.read_text(encoding="utf-8")


@others
def test_tensorboard(made: Diagnosis, home: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(home / "logs") as writer:
        for step, value in enumerate(OWN):
            writer.add_scalar("train/loss", value, step)
        log(made, writer)
    seen = EventAccumulator(str(home / "logs"), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    assert [e.value for e in seen.Scalars("train/loss")] == pytest.approx(OWN)
    assert {e.step: e.value for e in seen.Scalars(PROBE)} == pytest.approx(the_probe(made))
    kind = made.events[0].kind
    assert made.events[0].step in {e.step for e in seen.Scalars(f"whyspike/event/{kind}")}
    text = seen.Tensors("whyspike/diagnosis/text_summary")[0].tensor_proto.string_val[0].decode()
    assert made.answer.cause is not None
    assert made.answer.cause in text
    assert REPORT in text
    check_report(home / "logs" / REPORT, made)


@others
def test_wandb(made: Diagnosis, home: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    run: Any = wandb.init(project="p", dir=str(home))
    for value in OWN:
        run.log({"train/loss": value})
    log(made, run, first_step=1)
    folder = Path(run.dir).parent
    summary = dict(run.summary)
    run.finish()
    assert summary["whyspike/cause"] == made.answer.cause
    assert summary["whyspike/status"] == "explained"
    assert summary["whyspike/sentence"] == made.answer.sentence
    history = rows_of(folder)
    assert [r["train/loss"] for r in history if "train/loss" in r] == pytest.approx(OWN)
    points = {int(r["whyspike/step"]) - 1: r[PROBE] for r in history if PROBE in r}
    assert points == pytest.approx(the_probe(made))
    tables = list(folder.rglob("*.table.json"))
    assert any(made.answer.cause in p.read_text() for p in tables)  # type: ignore[operator]
    kept = [p for p in home.rglob("*") if p.is_file() and p.suffix != ".wandb" and b"uPlot" in p.read_bytes()]
    assert kept, "the report is an artefact"


def rows_of(folder: Path) -> list[dict[str, float]]:
    from whyspike.logs.protobuf import fields
    from whyspike.readers.wandb_local import HISTORY, _file_in, _records, _row

    path = _file_in(folder)
    assert path is not None
    return [
        row
        for record in _records(path.read_bytes())
        for n, _, value in fields(record)
        if n == HISTORY and isinstance(value, bytes) and (row := _row(value))
    ]


@others
def test_mlflow(made: Diagnosis, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    mlflow.set_tracking_uri((home / "store").as_uri())  # a database needs more than mlflow-skinny
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", artifact_location=(home / "kept").as_uri()))
    with mlflow.start_run() as run:
        for step, value in enumerate(OWN):
            mlflow.log_metric("train/loss", float(value), step=step)
        log(made, run)
    client = mlflow.MlflowClient()
    own = sorted(client.get_metric_history(run.info.run_id, "train/loss"), key=lambda m: m.step)
    assert [m.value for m in own] == pytest.approx(OWN)
    points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, PROBE)}
    assert points == pytest.approx(the_probe(made))
    tags = client.get_run(run.info.run_id).data.tags
    assert (tags["whyspike.status"], tags["whyspike.cause"]) == ("explained", made.answer.cause)
    assert {p.path for p in client.list_artifacts(run.info.run_id, "whyspike")} == {
        f"whyspike/{name}" for name in (REPORT, "diagnosis.json", "report.md")
    }
    (report,) = (home / "kept").rglob(REPORT)
    check_report(report, made)


@others
def test_a_logger_of_lightning(made: Diagnosis, home: Path) -> None:
    pytest.importorskip("lightning", reason="needs the extra lightning")
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(home)
    log(made, logger)
    assert (Path(logger.log_dir) / REPORT).is_file()


def test_what_is_no_tracker_is_said(made: Diagnosis) -> None:
    with pytest.raises(UnknownTracker, match=r"list was given; a SummaryWriter, .* is needed"):
        log(made, [])
