"""Reading logs that other tools wrote: what is in them comes out, and what is not is said."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

from whyspike.errors import UnreadableRun
from whyspike.logs import epochs, order, roles, values
from whyspike.logs.assemble import Asked
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.readers import read_all
from whyspike.types import Run


def curve(n: int, *, seed: int = 0, decimals: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.round(np.exp(-np.linspace(0, 1, n) + 0.05 * rng.standard_normal(n)), decimals)


def one(path: Path, **asked: object) -> Run:
    (run,) = read_all(Source(path), Asked(**asked))  # type: ignore[arg-type]
    return run


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def ids(run: Run) -> list[str]:
    return [note.id for note in run.notes]


# --------------------------------------------------------------------------- Hugging Face


def trainer_state(loss: np.ndarray, *, every: int, per_epoch: float, decimals: int = 2) -> dict[str, object]:
    steps = every * np.arange(1, len(loss) + 1)
    rows = [
        {"epoch": round(s / per_epoch, decimals), "learning_rate": 1e-4, "loss": float(v), "step": int(s)}
        for s, v in zip(steps, loss, strict=True)
    ]
    last = int(steps[-1])
    end = {"epoch": round(last / per_epoch, decimals), "step": last, "train_loss": 1.0, "train_runtime": 1.0}
    return {"epoch": last / per_epoch, "global_step": last, "log_history": [*rows, end], "max_steps": last}


@pytest.mark.parametrize("every", [1, 10])
def test_a_trainer_state_gives_the_loss_and_the_exact_length_of_its_epochs(tmp_path: Path, every: int) -> None:
    loss = curve(1218 // every)
    state = trainer_state(loss, every=every, per_epoch=406.3125)
    run = one(written(tmp_path / "anything.json", json.dumps(state)))
    assert run.reader == "hf-trainer"
    assert run.loss.tolist() == loss.tolist()
    assert run.step.tolist() == [every * (k + 1) for k in range(len(loss))]
    assert run.facts["epoch_length"] == pytest.approx(406.3125)
    assert run.steps_per_epoch == 406
    assert run.epoch is not None
    assert run.index is not None
    # 406.3 updates: the first epoch holds the updates 1 to 407, of which the last is shared
    first = run.step[run.epoch == 1][0]
    assert first == (408 if every == 1 else 410)
    assert run.lr is not None
    assert run.lr[0] == 1e-4
    assert ("averaged-values" in ids(run)) == (every > 1)
    assert "rounded-values" not in ids(run)


def test_an_output_folder_is_read_by_its_latest_checkpoint(tmp_path: Path) -> None:
    for step, n in ((50, 50), (100, 100)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = trainer_state(curve(n), every=1, per_epoch=40)
        written(folder / "trainer_state.json", json.dumps(state))
    assert len(one(tmp_path)) == 100


def test_epochs_that_are_not_linear_begin_where_the_column_says(tmp_path: Path) -> None:
    # streamed data: the epoch column stands at its whole part, and the counter starts again after a resume
    state = trainer_state(curve(200), every=50, per_epoch=1e9)
    for row in state["log_history"]:  # type: ignore[attr-defined]
        at = row["step"]
        row["epoch"] = 0.0 if at <= 3000 else 1.0 if at < 6000 else 0.0 if at < 8000 else 1.0
    state["epoch"] = 1.0
    run = one(written(tmp_path / "trainer_state.json", json.dumps(state)))
    assert run.epoch is not None
    assert run.epoch.tolist() == sorted(run.epoch.tolist())
    assert [int(run.step[np.argmax(run.epoch == e)]) for e in range(4)] == [50, 3050, 6000, 8000]
    assert run.facts["epochs_exact"] is False


@given(
    length=st.floats(20, 800),
    every=st.sampled_from([1, 5, 10]),
    decimals=st.sampled_from([2, 4, 12]),
    n_epochs=st.integers(2, 6),
)
def test_a_fraction_of_an_epoch_gives_the_boundaries(length: float, every: int, decimals: int, n_epochs: int) -> None:
    done = np.arange(every - 1, int(length * n_epochs), every)
    column = np.round((done + 1) / length, decimals)
    total = (float(done[-1] + 1), float((done[-1] + 1) / length))
    found = epochs.of_column(done, column, total=total)
    assert found is not None
    assert found.length == pytest.approx(length, rel=1e-9)
    assert found.epoch.tolist() == np.floor(done / length + 1e-9).astype(int).tolist()


@given(length=st.integers(10, 400), every=st.sampled_from([1, 7, 50]), first=st.sampled_from([0, 1]))
def test_a_whole_epoch_gives_the_boundaries(length: int, every: int, first: int) -> None:
    done = np.arange(every - 1, length * max(4, 4 * every), every)  # enough epochs to see where they end
    found = epochs.of_column(done, done // length + first)
    assert found is not None
    assert abs(found.length - length) < 1
    if found.length == length:
        assert found.epoch.tolist() == (done // length).tolist()
        assert found.index.tolist() == (done % length).tolist()


# --------------------------------------------------------------------------- text, CSV, JSON


def test_text_of_step_key_value_takes_the_training_loss(tmp_path: Path) -> None:
    loss = curve(300)
    lines = []
    for k, v in enumerate(loss):
        if k % 100 == 0:
            lines += [f"{k} val {v:.4f}", f"{k} hella 0.2487"]
        lines.append(f"{k} train {v:.6f}")
    run = one(written(tmp_path / "log.txt", "\n".join(lines)))
    assert run.reader == "step-text"
    assert run.loss.tolist() == loss.tolist()
    assert run.step[0] == 0
    assert run.signals["val"].step.tolist() == [0, 100, 200]


def test_text_of_step_and_loss(tmp_path: Path) -> None:
    loss = curve(100)
    run = one(written(tmp_path / "losses.txt", "\n".join(f"{k} {v}" for k, v in enumerate(loss, 1))))
    assert run.loss.tolist() == loss.tolist()
    assert run.facts["first_step"] == 1


def test_an_export_of_wandb_names_its_run_and_what_it_averaged(tmp_path: Path) -> None:
    loss = curve(200)
    rng = np.random.default_rng(1)
    steps = np.sort(rng.choice(5000, 200, replace=False))
    with (tmp_path / "export.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["Step", "happy-dog-1 - lm_loss", "happy-dog-1 - lm_loss__MIN", "happy-dog-1 - lm_loss__MAX"])
        for k, (s, v) in enumerate(zip(steps, loss, strict=True)):
            writer.writerow([s, v, v, v + 0.1 * (k % 2)])
    run = one(tmp_path / "export.csv")
    assert run.loss.tolist() == loss.tolist()
    assert run.step.tolist() == steps.tolist()
    assert {"sampled-values", "averaged-values"} <= set(ids(run))


def test_an_export_of_two_runs_gives_two(tmp_path: Path) -> None:
    a, b = curve(50, seed=1), curve(50, seed=2)
    rows = ["Step,a - loss,b - loss", *(f"{k},{x},{y}" for k, (x, y) in enumerate(zip(a, b, strict=True)))]
    first, second = read_all(Source(written(tmp_path / "two.csv", "\n".join(rows))))
    assert (first.loss.tolist(), second.loss.tolist()) == (a.tolist(), b.tolist())
    assert first.source.endswith(": a")


def test_sparse_columns_of_lightning(tmp_path: Path) -> None:
    loss = curve(60)
    rows = ["train_loss_step,epoch,step,val_loss,train_loss_epoch,lr-AdamW"]
    for k in range(60 * 50):
        if k % 50 == 49:
            rows.append(f"{loss[k // 50]},{k // 151},{k},,,")
            rows.append(f",,{k},,,0.001")
        if k % 151 == 150:
            rows.append(f",{k // 151},{k},0.5,0.4,")
    run = one(written(tmp_path / "metrics.csv", "\n".join(rows)))
    assert run.loss.tolist() == loss.tolist()
    assert run.steps_per_epoch == 151
    assert run.facts["first_step"] == 0
    assert run.index is not None
    assert run.index.tolist() == (run.step % 151).tolist()
    assert "train_loss_epoch" in str(run.facts["reader_says"])
    assert run.lr is not None
    assert np.nanmedian(run.lr) == 0.001


def test_one_value_for_each_epoch_is_said(tmp_path: Path) -> None:
    rows = ["epoch,accuracy,loss,lr,val_loss", *(f"{k},0.9,{v},0.001,0.5" for k, v in enumerate(curve(40)))]
    run = one(written(tmp_path / "history.csv", "\n".join(rows)))
    assert "epoch-only" in ids(run)
    assert "too-short" not in ids(run)
    assert len(run) == 40


def test_a_table_with_decimal_commas(tmp_path: Path) -> None:
    run = one(written(tmp_path / "t.csv", "step;loss\n" + "\n".join(f"{k};1,{k:03d}" for k in range(100))))
    assert run.loss[:3].tolist() == [1.0, 1.001, 1.002]


@pytest.mark.parametrize("nested", [True, False])
def test_metrics_by_step_in_json(tmp_path: Path, nested: bool) -> None:
    loss = curve(100)
    by_step = {str(k): float(v) for k, v in enumerate(loss, 1)}
    held = {"start_step": 1, "end_step": 100, "step_interval": 1, "values": by_step} if nested else by_step
    run = one(written(tmp_path / "golden.json", json.dumps({"lm loss": held, "iteration-time": held})))
    assert run.reader == "metric-json"
    assert run.loss.tolist() == loss.tolist()
    assert run.step.tolist() == list(range(1, 101))


def test_json_lines_with_dicts_inside_and_a_cut_off_end(tmp_path: Path) -> None:
    loss = curve(100)
    lines = [json.dumps({"_step": k, "train": {"loss": float(v)}, "note": "x"}) for k, v in enumerate(loss)]
    run = one(written(tmp_path / "log.jsonl", "\n".join([*lines, '{"_step": 100, "tra'])))
    assert run.loss.tolist() == loss.tolist()
    assert ids(run) == ["truncated-tail"]


def test_nan_and_infinity_are_values(tmp_path: Path) -> None:
    odd = {70: "nan", 80: "inf"}
    text = "step,loss\n" + "\n".join(f"{k},{odd.get(k, 1.0 + k % 7)}" for k in range(99))
    run = one(written(tmp_path / "t.csv", text))
    assert np.isnan(run.loss[70])
    assert np.isinf(run.loss[80])
    assert len(run) == 99


def test_gzip_utf16_and_nul_bytes(tmp_path: Path) -> None:
    text = "step,loss\n" + "\n".join(f"{k},{v}" for k, v in enumerate(curve(80)))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.csv").write_bytes(text.encode("utf-16"))
    (tmp_path / "c.csv").write_bytes(bytes(4096) + text.encode() + bytes(10))
    a, b, c = (one(tmp_path / name) for name in ("a.csv.gz", "b.csv", "c.csv"))
    assert a.loss.tolist() == b.loss.tolist() == c.loss.tolist()
    assert ids(c) == ["truncated-head", "truncated-tail"]


# --------------------------------------------------------------------------- the order of the rows


def test_a_resume_is_cut_back_to_what_was_trained_on(tmp_path: Path) -> None:
    loss = curve(400)
    rows = [(k, loss[k]) for k in range(300)] + [(k, 2 * loss[k]) for k in range(250, 400)]
    run = one(written(tmp_path / "t.csv", "iter,loss\n" + "\n".join(f"{k},{v}" for k, v in rows)))
    assert run.step.tolist() == list(range(400))
    assert run.loss[250] == 2 * loss[250]
    assert ids(run) == ["resume-overlap"]
    assert [(m.name, m.step, m.data["reached"]) for m in run.marks] == [("resume", 250, 299)]


def test_appended_runs_are_taken_apart(tmp_path: Path) -> None:
    rows = [f"{k},{v}" for seed in range(3) for k, v in enumerate(curve(100, seed=seed))]
    found = read_all(Source(written(tmp_path / "t.csv", "step,loss\n" + "\n".join(rows))))
    assert [run.loss.tolist() for run in found] == [curve(100, seed=s).tolist() for s in range(3)]
    assert all("appended-runs" in ids(run) for run in found)


def test_a_counter_within_the_epoch_is_counted_on(tmp_path: Path) -> None:
    rows = [f"{e},{b},{v}" for e in range(5) for b, v in enumerate(curve(40, seed=e))]
    run = one(written(tmp_path / "t.csv", "epoch,batch,loss\n" + "\n".join(rows)))
    assert run.step.tolist() == list(range(200))
    assert run.steps_per_epoch == 40
    assert not run.notes


def test_duplicates_are_said_and_the_last_one_counts(tmp_path: Path) -> None:
    rows = [f"{k},{v}" for k, v in enumerate(curve(100))] + ["99,7.5"]
    run = one(written(tmp_path / "t.csv", "step,loss\n" + "\n".join(rows)))
    assert run.loss[-1] == 7.5
    assert ids(run) == ["duplicate-steps"]


@given(
    cuts=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=4),
    every=st.sampled_from([1, 20]),
)
def test_resumes_never_repeat_or_lose_a_step(cuts: list[tuple[int, int]], every: int) -> None:
    """Whatever a training is interrupted and set back by, what is read is what it went through in the end."""
    step, at, taken = [0], 0, {0: 0}
    for forward, back in cuts:
        for _ in range(forward):
            at += 1
            step.append(at)
            taken[at] = len(step) - 1
        at = max(at - back, 1)  # a checkpoint after the first step, so that it is no new run
        step.append(at)
        taken[at] = len(step) - 1
        taken = {s: r for s, r in taken.items() if s <= at}
    (piece,) = order.arrange(np.array(step, dtype=float) * every)
    kept, _ = order.once(piece.step)
    assert piece.step[kept].tolist() == [s * every for s in sorted(taken)]
    assert piece.rows[kept].tolist() == [taken[s] for s in sorted(taken)]


# --------------------------------------------------------------------------- names and values


@pytest.mark.parametrize(
    ("names", "loss"),
    [
        (["step", "val_loss", "loss"], "loss"),
        (["iter", "loss_cls", "total_loss", "lr"], "total_loss"),
        (["_step", "eval/loss", "train/loss", "train/grad_norm"], "train/loss"),
        (["step", "train_loss_epoch", "train_loss_step"], "train_loss_step"),
        (["step", "train/CrossEntropyLoss", "train/Perplexity", "eval/v3/CrossEntropyLoss"], "train/CrossEntropyLoss"),
        (["global_step", "lm loss", "validation lm loss"], "lm loss"),
        (["step", "reward"], "reward"),
    ],
)  # fmt: skip
def test_the_training_loss_is_found_by_its_name(tmp_path: Path, names: list[str], loss: str) -> None:
    rows = [",".join(str(k if j == 0 else 1 + j) for j in range(len(names))) for k in range(40)]
    run = one(written(tmp_path / "t.csv", "\n".join([",".join(names), *rows])))
    assert run.loss[0] == 1 + names.index(loss)


def test_what_could_also_be_meant_is_said_and_can_be_asked_for(tmp_path: Path) -> None:
    rows = [f"{k},{1 + k % 3},{5 + k % 2}" for k in range(50)]
    path = written(tmp_path / "t.csv", "\n".join(["step,loss_G,loss_D", *rows]))
    run = one(path)
    assert "'loss_D'" in str(run.facts["reader_says"])
    assert one(path, loss="loss_D").loss[0] == 5
    with pytest.raises(UnreadableRun, match="has no column 'other'; it has loss_G, loss_D"):
        one(path, loss="other")


def test_what_a_log_lacks_can_be_given(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", "\n".join(f"{k} {v}" for k, v in enumerate(curve(120))))
    assert one(path).index is None
    assert one(path, steps_per_epoch=30.5).steps_per_epoch == 30
    given = one(path, dataset_size=1026, batch_size=32)
    assert given.steps_per_epoch == 33
    assert given.batch_size == 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "an empty file"),
        ("# Title\n\nwords and words\n", "text that begins with '# Title'"),
        ("\x01\x02\x03binary", "a binary file"),
        ("name,place\nA,B\nC,D\n", "holds no loss curve"),
        ("step,accuracy,top5\n1,.5,.9\n2,.6,.9\n", "none of these is called a training loss: name the column with"),
        ("step,loss\n1,2.5\n", "one value of loss; a curve needs more"),
        ('{"log_history": []}', "without a log_history"),
    ],
)  # fmt: skip
def test_a_file_without_a_curve_gets_a_sentence(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UnreadableRun) as caught:
        read_all(Source(written(tmp_path / "file", content)))
    assert said in str(caught.value)


def test_numbers() -> None:
    assert [number(t) for t in ("1e-3", " 2 ", "1,234.5", "-inf")] == [1e-3, 2.0, 1234.5, float("-inf")]
    assert [number(t) for t in ("", "n/a", "1,2", "0,123", None, True, "12:30")] == [None] * 7
    assert np.isnan(number("NaN"))  # type: ignore[arg-type]


def test_names_become_words() -> None:
    assert roles.words("trainer/globalStep") == "trainer global step"
    assert roles.words("train_loss__MIN") == "train loss min"


def test_rounding_is_said_only_where_it_hides_something() -> None:
    rng = np.random.default_rng(0)
    loss = 2 + 0.003 * rng.standard_normal(500)
    assert values.quantum_of(np.round(loss, 4)) is None
    assert values.quantum_of(np.round(loss, 2)) == 0.01
    assert values.quantum_of(np.full(100, 0.25)) == 0.01


# --------------------------------------------------------------------------- the command line


def test_a_log_is_diagnosed_from_a_file_and_from_standard_input(whyspike: Command, tmp_path: Path) -> None:
    loss = curve(400)
    loss[300] *= 20
    text = "step,loss\n" + "\n".join(f"{10 * k},{v}" for k, v in enumerate(loss))
    made = whyspike("diagnose", str(written(tmp_path / "t.csv", text)), "--format", "json")
    assert made.returncode == 1
    assert "column 'loss'" in made.stderr
    said = json.loads(made.stdout)
    assert [(e["kind"], e["step"]) for e in said["events"]] == [("spike", 3000)]
    piped = subprocess.run(
        [sys.executable, "-m", "whyspike", "diagnose", "-", "--format", "json"],
        input=text, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert json.loads(piped.stdout)["events"] == said["events"]
    assert json.loads(piped.stdout)["run"]["source"] == "standard input"


def test_several_runs_are_diagnosed_apart(whyspike: Command, tmp_path: Path) -> None:
    rows = [f"{k},{v}" for seed in range(2) for k, v in enumerate(curve(300, seed=seed))]
    path = str(written(tmp_path / "t.csv", "step,loss\n" + "\n".join(rows)))
    made = whyspike("diagnose", path, "--format", "json")
    assert made.returncode == 0
    runs = json.loads(made.stdout)["runs"]
    assert [r["run"]["notes"][0]["id"] for r in runs] == ["appended-runs"] * 2
    assert whyspike("diagnose", path).stdout.count("\nhealthy: ") == 2
    assert whyspike("diagnose", path, "--format", "html", "-o", "x.html").returncode == 2


def test_wrong_numbers_are_refused(whyspike: Command, tmp_path: Path) -> None:
    made = whyspike("diagnose", str(written(tmp_path / "t.csv", "step,loss\n1,2\n2,1\n")), "--batch-size", "0")
    assert made.returncode == 2
    assert "--batch-size 0 was given; it must be above 0" in made.stderr


@pytest.mark.parametrize("step", ["1e300", "99999999999999999999", "-1e18"])
def test_a_step_that_no_counter_reaches_is_none(tmp_path: Path, step: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + "\n".join(f"{step if k == 7 else k},{1 / (k + 1)}" for k in range(40)))
    (made,) = read_all(Source(path))
    assert made.step.min() >= 0
    assert made.step.max() == 39


def test_lines_that_end_in_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(
        b"step,loss\n" + b"".join(b"%d,%.3f%s" % (k, 1 / (k + 1), b"\r" if k % 3 else b"\n") for k in range(40))
    )
    assert len(read_all(Source(path))[0]) == 40


@pytest.mark.parametrize("schedule", ["steps", "cosine", "warm-up", "restart"])
def test_a_learning_rate_that_changes_at_once_is_said(tmp_path: Path, schedule: str) -> None:
    k = np.arange(300)
    lr = {
        "steps": 0.1 * 0.1 ** (k // 100),
        "cosine": 0.05 * (1 + np.cos(np.pi * k / 300)),
        "warm-up": 0.1 * np.minimum(1, (k + 1) / 20),
        "restart": 0.05 * (1.01 + np.cos(np.pi * (k % 150) / 150)),
    }[schedule]
    loss = [*loss_of(100, 1.0), *loss_of(100, 0.5), *loss_of(100, 0.4)]
    rows = "\n".join(f"{s},{v:.5f},{r:.6g}" for s, v, r in zip(k, loss, lr, strict=True))
    (tmp_path / "a.csv").write_text(f"step,loss,lr\n{rows}\n")
    (run,) = read_all(Source(tmp_path / "a.csv"))
    said = [n.text for n in run.notes if n.id == "lr-steps"]
    if schedule == "steps":
        assert len(said) == 1
        assert "0.1 to 0.01 at step 100 (the loss goes from 1 to 0.5)" in said[0]
        assert "at step 200" in said[0]
    elif schedule == "restart":
        assert "at step 150" in said[0]
    else:
        assert not said


def loss_of(n: int, level: float) -> list[float]:
    return (level * (1 + 0.001 * np.sin(np.arange(n)))).tolist()
