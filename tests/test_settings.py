"""The length of an epoch from the settings beside a log: where only one thing can be meant, and said from where."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command

from whyspike.logs import settings
from whyspike.logs.assemble import Asked
from whyspike.logs.source import Source
from whyspike.readers import read_all
from whyspike.types import Run

LOSS = [2.0 - 0.001 * k + 0.1 * (k * 7 % 5) for k in range(400)]

LIGHTNING = "batch_size: 32\ndata_dir: /data\nlr: 0.001\nnum_train_samples: 1000\n"
WANDB = (
    "_wandb:\n    value:\n        cli_version: 0.18\nbatch_size:\n    desc: null\n    value: 32\n"
    "dataset_size:\n    desc: null\n    value: 1000\n"
)
HYDRA = (
    "train:\n  batch_size: 32  # per step\n  epochs: 10\nval:\n  batch_size: 64\ndata:\n  num_train_samples: 1_000\n"
)


def run_with(folder: Path, files: dict[str, str], **asked: float) -> Run:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "log.csv").write_text("step,loss\n" + "".join(f"{k},{v}\n" for k, v in enumerate(LOSS)), encoding="utf-8")
    (run,) = read_all(Source(folder / "log.csv"), Asked(**asked))  # type: ignore[arg-type]
    return run


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hparams.yaml", LIGHTNING),
        ("files/config.yaml", WANDB),
        (".hydra/config.yaml", HYDRA),
        ("config.json", '{"train": {"batch_size": 32}, "data": {"num_train_samples": 1000, "path": "x"}}'),
        ("args.json", '{"steps_per_epoch": 32, "devices": 4}'),
        ("config.yaml", "iters_per_epoch: 32\nmodel:\n    width: 64\n"),
    ],
)
def test_the_settings_beside_a_log_give_the_length_of_its_epochs(tmp_path: Path, name: str, text: str) -> None:
    run = run_with(tmp_path, {name: text})
    assert run.steps_per_epoch == 32
    assert f"32, from {name}: " in run.facts["reader_says"]["steps_per_epoch"]


def test_samples_and_batch_give_the_size_of_the_last_batch(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"hparams.yaml": LIGHTNING})
    assert run.n_samples is not None
    assert run.n_samples[:32].tolist() == [32] * 31 + [8]
    assert run.facts["reader_says"]["batch_size"].startswith("32, from hparams.yaml: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "server:\n  port: 8080\n  workers: 4\n  batch: 10\nlogging:\n  steps: 50\n"),
        ("config.json", '{"architectures": ["GPT2"], "n_layer": 12, "vocab_size": 50257, "dataset": "c4"}'),
        ("config.yaml", "val:\n  batch_size: 32\n  dataset_size: 1000\n"),  # of another loader
        ("hparams.yaml", LIGHTNING + "accumulate_grad_batches: 4\n"),  # a step has four of these batches
        ("hparams.yaml", LIGHTNING + "devices: auto\n"),
        ("config.json", '{"a": {"batch_size": 32}, "b": {"batch_size": 16}, "dataset_size": 1000}'),  # which?
        ("config.yaml", "batch_size: ${data.size}\ndataset_size: 1e3x\n- not: [yaml\n\t: :"),
        ("config.json", '{"batch_size": 32, "dataset_size": 1000'),  # cut off
        ("config.yaml", "steps_per_epoch: 0.5\nbatch_size: -1\ndataset_size: .nan\n"),
    ],
)
def test_settings_of_something_else_or_of_two_meanings_give_nothing(tmp_path: Path, name: str, text: str) -> None:
    run = run_with(tmp_path, {name: text})
    assert run.steps_per_epoch is None
    assert run.n_samples is None
    assert "steps_per_epoch" not in run.facts["reader_says"]


def test_what_a_person_says_counts_before_the_settings(tmp_path: Path) -> None:
    assert run_with(tmp_path, {"hparams.yaml": LIGHTNING}, steps_per_epoch=50).steps_per_epoch == 50
    run = run_with(tmp_path, {"hparams.yaml": LIGHTNING}, batch_size=10)
    assert run.steps_per_epoch == 100
    assert "--batch-size 10" in run.facts["reader_says"]["steps_per_epoch"]


def test_the_logs_own_epochs_count_before_the_settings(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text(LIGHTNING)
    rows = "".join(f"{k},{k // 50},{v}\n" for k, v in enumerate(LOSS))
    (tmp_path / "log.csv").write_text("step,epoch,loss\n" + rows)
    (run,) = read_all(Source(tmp_path / "log.csv"))
    assert run.steps_per_epoch == 50
    assert run.batch_size is None  # these are the settings of another training


def test_results_of_the_hugging_face_scripts_give_the_samples(tmp_path: Path) -> None:
    (tmp_path / "train_results.json").write_text('{"epoch": 3.0, "train_loss": 0.5, "train_samples": 1000}')
    found = settings.beside(Source(tmp_path))
    assert found is not None
    assert (found.dataset_size, found.batch_size) == (1000, None)


def test_the_command_says_where_the_length_comes_from(whyspike: Command, tmp_path: Path) -> None:
    run_with(tmp_path, {"hparams.yaml": LIGHTNING})
    made = whyspike("diagnose", str(tmp_path / "log.csv"))
    assert (
        "steps per epoch: 32, from hparams.yaml: num_train_samples 1,000 and hparams.yaml: batch_size 32" in made.stderr
    )
