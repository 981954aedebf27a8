"""Round trips: what the real logger of a tool writes is read back, every point of it.

The loggers are extras; a test whose logger is not installed is skipped and says so.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from whyspike.errors import UnreadableRun
from whyspike.logs import protobuf
from whyspike.logs.assemble import Asked
from whyspike.logs.source import Source
from whyspike.readers import read_all
from whyspike.types import Run

others = pytest.mark.filterwarnings("ignore")  # what other projects warn of is theirs

N = 600
LOSS = [
    float(np.float32(v)) for v in np.exp(-np.linspace(0, 1, N) + 0.05 * np.random.default_rng(0).standard_normal(N))
]


def one(path: Path, **asked: object) -> Run:
    (run,) = read_all(Source(path), Asked(**asked))  # type: ignore[arg-type]
    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, so that no tool writes into the real one; nothing goes over a network."""
    for name, value in (
        ("HOME", tmp_path),
        ("WANDB_MODE", "offline"),
        ("WANDB_SILENT", "true"),
        ("HF_HUB_OFFLINE", "1"),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------- protocol buffers


def test_fields_of_a_message() -> None:
    message = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x19" + struct.pack("<d", 1.5) + b"\x25" + struct.pack("<f", 2.5)
    assert list(protobuf.fields(message)) == [(1, 0, 150), (2, 2, b"abc"), (3, 1, 1.5), (4, 5, 2.5)]
    assert protobuf.signed((1 << 64) - 3) == -3
    for broken in (b"\x08", b"\x12\x05ab", b"\x0b"):
        with pytest.raises(ValueError, match=r"cut off|wire type"):
            list(protobuf.fields(broken))


def event(step: int, tag: str, value: float) -> bytes:
    """A record of an event file with one scalar, by hand."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    summary = field(1, field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
    body = b"\x09" + struct.pack("<d", 0.0) + b"\x10" + varint(step) + field(5, summary)
    return struct.pack("<Q", len(body)) + b"\0\0\0\0" + body + b"\0\0\0\0"


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 127
        out += bytes([low | 128 if value else low])
        if not value:
            return out


def test_event_files_by_hand_and_cut_off(tmp_path: Path) -> None:
    raw = b"".join(event(k, "loss", v) for k, v in enumerate(LOSS))
    (tmp_path / "events.out.tfevents.1.host").write_bytes(raw)
    assert one(tmp_path).loss.tolist() == LOSS
    (tmp_path / "events.out.tfevents.1.host").write_bytes(raw[:-9])
    run = one(tmp_path)
    assert run.loss.tolist() == LOSS[:-1]
    assert [note.id for note in run.notes] == ["truncated-tail"]


def test_a_validation_counted_in_epochs_does_not_set_the_loss_back(tmp_path: Path) -> None:
    parts = []
    for k, v in enumerate(LOSS):
        parts.append(event(k, "train/loss", v))
        if k % 100 == 99:
            parts.append(event(k // 100, "val/loss", 2.0))
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"".join(parts))
    run = one(tmp_path)
    assert run.loss.tolist() == LOSS
    assert not run.notes


def test_a_folder_of_runs_is_diagnosed_run_by_run(whyspike: Command, tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        raw = b"".join(event(k, "loss", v) for k, v in enumerate(LOSS))
        (folder / "events.out.tfevents.1.host").write_bytes(raw)
    (tmp_path / "logs" / "notes.txt").write_text("words\n")
    made = whyspike("diagnose", str(tmp_path / "logs"), "--format", "json")
    said = json.loads(made.stdout)
    assert said["schema_version"] == 1
    assert [Path(r["run"]["source"]).name for r in said["runs"]] == ["a", "c"]
    assert made.returncode == 0


def test_a_folder_without_a_curve_is_said(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(event(1, "lr", 0.1) + event(2, "lr", 0.1))
    with pytest.raises(UnreadableRun):
        read_all(Source(tmp_path))


# --------------------------------------------------------------------------- the real loggers


@others
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for k in range(12_000):  # more than TensorBoard's own loader keeps
            writer.add_scalar("train/loss", LOSS[k % N], k)
            if k % 100 == 0:
                writer.add_scalar("lr", 0.1, k)
    run = one(tmp_path)
    assert run.loss.tolist() == (LOSS * 20)[:12_000]
    assert run.lr is not None
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [e.value for e in whole.Scalars("train/loss")] == run.loss.tolist()


@others
def test_tensors_of_one_number_as_keras_writes_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util import tensor_util

    writer = EventFileWriter(str(tmp_path))
    for k, v in enumerate(LOSS):
        value = summary_pb2.Summary.Value(tag="epoch_loss", tensor=tensor_util.make_tensor_proto(np.float32(v)))
        writer.add_event(event_pb2.Event(step=k, summary=summary_pb2.Summary(value=[value])))
    writer.close()
    assert one(tmp_path).loss.tolist() == LOSS


@others
def test_wandb_offline(home: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    run = wandb.init(dir=str(home), project="p", config={"batch_size": 8, "num_train_samples": 480, "seed": 3})
    for k, v in enumerate(LOSS):
        wandb.log({"train": {"loss": v}, "lr": 0.1, "name": "text"}, step=2 * k)
    run.finish()
    wandb.teardown()  # its service writes the last block when it ends
    (file,) = [p for p in (home / "wandb").glob("offline-run-*/*.wandb") if not p.parent.is_symlink()]
    for path in (file, file.parent, home / "wandb"):
        read = one(path)
        assert read.loss.tolist() == LOSS
        assert read.step.tolist() == [2 * k for k in range(N)]
        assert read.steps_per_epoch == 60
        assert "the run's config: num_train_samples 480" in read.facts["reader_says"]["steps_per_epoch"]
        assert not read.notes
    broken = home / "run-x.wandb"
    broken.write_bytes(file.read_bytes()[:-4000])
    assert [note.id for note in one(broken).notes][:1] == ["truncated-tail"]


@others
@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_mlflow(home: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if store == "sqlite":
        pytest.importorskip(
            "sqlalchemy", reason="mlflow's SQLite store needs sqlalchemy, which mlflow-skinny leaves out"
        )
        pytest.importorskip("alembic", reason="mlflow's SQLite store needs alembic")
    target = home / ("mlruns" if store == "files" else "mlflow.db")
    mlflow.set_tracking_uri(target.as_uri() if store == "files" else f"sqlite:///{target}")
    with mlflow.start_run():
        for k, v in enumerate(LOSS[:200]):
            mlflow.log_metric("train_loss", v, step=k)
        mlflow.log_metric("train_loss", float("nan"), step=200)
    run = one(target)
    assert run.loss[:-1].tolist() == LOSS[:200]
    assert np.isnan(run.loss[-1])


@others
def test_trackio(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    trackio.init(project="p", name="run-1")
    for k, v in enumerate(LOSS):
        trackio.log({"train/loss": v, "lr": 0.1}, step=k)
    trackio.finish()
    (file,) = home.glob("trackio/*.db")
    run = one(file)
    assert run.reader == "trackio"
    assert run.step.tolist() == list(range(N))
    assert run.loss.tolist() == LOSS


@others
@pytest.mark.parametrize("of", ["polars", "pandas"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_tables_of_data_frames(tmp_path: Path, of: str, separator: str) -> None:
    library = pytest.importorskip(of, reason=f"{of} is not installed")
    path, frame = tmp_path / "log.txt", library.DataFrame({"step": range(N), "loss": LOSS, "lr": [0.1] * N})
    frame.write_csv(path, separator=separator) if of == "polars" else frame.to_csv(path, sep=separator)
    run = one(path)
    assert run.step.tolist() == list(range(N))
    assert run.loss.tolist() == LOSS
    assert run.lr is not None


def test_json_lines_and_the_lines_of_detectron2(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": k, "loss": v}) + "\n" for k, v in enumerate(LOSS)))
    assert one(tmp_path / "log.jsonl").loss.tolist() == LOSS
    # JSONWriter: every 20 iterations, sorted keys; an evaluation adds a line with the same iteration.
    lines = [{"data_time": 0.01, "iteration": 20 * k + 19, "lr": 0.02, "total_loss": v} for k, v in enumerate(LOSS)]
    lines.insert(300, {"bbox/AP": 0.3, "iteration": 20 * 299 + 19})
    (tmp_path / "metrics.json").write_text("".join(json.dumps(x, sort_keys=True) + "\n" for x in lines))
    run = one(tmp_path / "metrics.json")
    assert run.loss.tolist() == LOSS
    assert run.step.tolist() == [20 * k + 19 for k in range(N)]
    assert run.lr is not None


def test_a_run_that_was_recorded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import whyspike

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    written = []
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(100):
            loss = (model(torch.ones(4, 3)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.step(loss)
            written.append(loss.item())
    run = one(tmp_path / "run")
    assert run.reader == "whyspike"
    assert run.loss.tolist() == written


@others
def test_lightning_csv_logger(home: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(home), name="x")
    for k, v in enumerate(LOSS):
        logger.log_metrics({"train_loss_step": v, "epoch": k // 60}, step=k)
        if k % 60 == 59:
            logger.log_metrics({"val_loss": 1.0, "epoch": k // 60}, step=k)
    logger.save()
    run = one(home / "x")
    assert run.loss.tolist() == LOSS
    assert run.steps_per_epoch == 60


@others
def test_lightning_trainer_with_two_loggers(home: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    import torch
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    written: list[float] = []

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, index):  # type: ignore[no-untyped-def]
            loss = ((self.layer(batch[0]) - 1) ** 2).mean()
            self.log("train_loss", loss)
            written.append(loss.item())
            return loss

        def configure_optimizers(self):  # type: ignore[no-untyped-def]
            return torch.optim.SGD(self.parameters(), 0.01)

    data = torch.utils.data.TensorDataset(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)))
    trainer = lightning.Trainer(
        max_epochs=4, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, logger=[CSVLogger(str(home), name="c"), TensorBoardLogger(str(home), name="t")],
    )  # fmt: skip
    trainer.fit(Net(), torch.utils.data.DataLoader(data, batch_size=4))
    for name, reader in (("c", "csv"), ("t", "tensorboard")):
        run = one(home / name)
        assert run.reader == reader
        assert run.loss.tolist() == pytest.approx(written)
        assert run.steps_per_epoch == 15


@others
def test_hugging_face_trainer(home: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x, labels=None):  # type: ignore[no-untyped-def]
            return {"loss": ((self.layer(x).squeeze(-1) - labels) ** 2).mean()}

    rng = np.random.default_rng(0)
    data = [
        {"x": torch.tensor(rng.standard_normal(4), dtype=torch.float32), "labels": torch.tensor(0.5)} for _ in range(90)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(home / "out"), num_train_epochs=3, per_device_train_batch_size=8, logging_steps=1, report_to=[],
        save_strategy="epoch", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=Model(), args=arguments, train_dataset=data)
    trainer.train()
    run = one(home / "out")
    written = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert run.loss.tolist() == written
    assert len(written) == 36
    assert run.steps_per_epoch == 12
    assert run.epoch is not None
    assert np.bincount(run.epoch).tolist() == [12, 12, 12]


@others
@pytest.mark.parametrize("by_epoch", [True, False])
def test_mmengine(home: Path, by_epoch: bool) -> None:
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    import torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    written: list[float] = []

    class Net(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x, y, mode="loss"):  # type: ignore[no-untyped-def]
            loss = ((self.layer(x).squeeze(-1) - y) ** 2).mean()
            written.append(loss.item())
            return {"loss": loss}

    generator = torch.Generator().manual_seed(0)
    runner = Runner(
        model=Net(),
        work_dir=str(home / "work"),
        experiment_name=f"by_epoch_{by_epoch}",  # else two runs of one second share what writes their logs
        train_dataloader={
            "batch_size": 4,
            "dataset": [(torch.randn(4, generator=generator), torch.tensor(0.5)) for _ in range(60)],
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "default_collate"},
        },
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        train_cfg={"by_epoch": True, "max_epochs": 3} if by_epoch else {"by_epoch": False, "max_iters": 45},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        log_processor={"by_epoch": by_epoch, "window_size": 1},
        default_scope="mmengine",
    )
    runner.train()
    (folder,) = [p for p in (home / "work").iterdir() if p.is_dir()]
    for path in (home / "work", folder, folder / "vis_data" / "scalars.json"):
        run = one(path)
        assert run.reader == "openmmlab"
        assert run.loss.tolist() == written
        assert run.step.tolist() == list(range(1, 46))
    run = one(folder / f"{folder.name}.log")  # printed with four decimals
    assert run.loss.tolist() == [round(v, 4) for v in written]
    assert run.steps_per_epoch == (15 if by_epoch else None)


@others
def test_keras_csv_logger_and_history(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    made = model.fit(x, x[:, 0], epochs=40, verbose=0, callbacks=[keras.callbacks.CSVLogger("log.csv")])
    run = one(home / "log.csv")
    assert np.allclose(run.loss, made.history["loss"])
    assert "epoch-only" in {note.id for note in run.notes}
    (home / "history.json").write_text(json.dumps(made.history))
    assert np.allclose(one(home / "history.json").loss, made.history["loss"])


def test_tqdm(tmp_path: Path) -> None:
    tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed")
    out = io.StringIO()
    for epoch in range(2):
        with tqdm.tqdm(total=100, desc=f"Epoch {epoch}", file=out, mininterval=0, miniters=1) as bar:
            for k in range(100):
                bar.set_postfix(loss=f"{LOSS[100 * epoch + k]:.6f}", refresh=False)
                bar.update()
    (tmp_path / "err.txt").write_text(out.getvalue(), encoding="utf-8")
    run = one(tmp_path / "err.txt")
    assert run.loss.tolist() == [round(v, 6) for v in LOSS[:200]]
    assert run.steps_per_epoch == 100


def test_rich_progress(tmp_path: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    columns = (TextColumn("Epoch 1"), BarColumn(), MofNCompleteColumn(), TextColumn("loss: {task.fields[loss]:.6f}"))
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=100, loss=LOSS[0])
        for k in range(100):
            progress.update(task, completed=k + 1, loss=LOSS[k])
            progress.refresh()
    (tmp_path / "out.txt").write_text(out.getvalue(), encoding="utf-8")
    run = one(tmp_path / "out.txt")
    assert run.step.tolist() == list(range(101))  # the empty bar is drawn as well
    assert run.loss.tolist()[1:] == [round(v, 6) for v in LOSS[:100]]
