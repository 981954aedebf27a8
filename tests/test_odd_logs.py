"""Logs as people have them: other headers, separators and units, damage, and no curve at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from whyspike import diagnose
from whyspike.errors import UnreadableRun
from whyspike.logs import source as sources
from whyspike.logs.source import Source
from whyspike.readers import delimited, read_all
from whyspike.types import Diagnosis, Run

N = 600
LOSS = [round(float(v), 4) for v in np.exp(-np.linspace(0, 1, N) + 0.05 * np.random.default_rng(5).standard_normal(N))]


def one(folder: Path, text: str, name: str = "log.csv") -> Run:
    (folder / name).write_text(text)
    (run,) = read_all(Source(folder / name))
    return run


def table(header: str, row: str) -> str:
    return "\n".join([*([header] if header else []), *(row.format(k=k, v=v) for k, v in enumerate(LOSS))]) + "\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (table("Step (k), Training Loss [nats] , Learning Rate", "{k},{v} nats,1e-3"), "log.csv"),
        (table("Wall time,Step,Value", "1.7e9,{k},{v}"), "run-tag-train_loss.csv"),
        (table("step,loss", '"{k:,}",{v}'), "log.csv"),
        (table("step  loss  lr", "{k}  {v}  1e-3"), "log.txt"),
        (table("| step | loss |\n|---|---|", "| {k} | {v} |"), "log.md"),
        (table("", "{k},{v}"), "log.csv"),
        (table("", "INFO:root:step={k} train_loss={v} tokens/s=1,234"), "a.log"),
        (table("", "{k}/600 [00:01<00:02, 1.0it/s]\r{{'loss': {v}, 'learning_rate': 1e-4, 'epoch': 0.1}}"), "out.txt"),
    ],
)
def test_a_loss_is_found_whatever_its_table_looks_like(tmp_path: Path, text: str, name: str) -> None:
    run = one(tmp_path, text, name)
    assert run.loss.tolist() == LOSS
    assert run.step.tolist() == list(range(N))


@pytest.mark.parametrize(
    "row",
    [
        "Epoch: [{e}][{i:3d}/100]\tTime  0.1 ( 0.1)\tLoss {v:.4e} ({v:.4e})\tAcc@1 1.0 ( 2.0)",
        "Train: {e} [{i:>4d}/100 ({i:>3.0f}%)]  Loss: {v:#.5g} ({v:#.3g})  Time: 0.1s",
    ],
)
def test_a_counter_beside_its_epoch_in_brackets(tmp_path: Path, row: str) -> None:
    text = "\n".join(row.format(e=k // 100, i=k % 100, v=v) for k, v in enumerate(LOSS))
    run = one(tmp_path, text, "a.log")
    assert run.steps_per_epoch == 100
    assert run.step.tolist() == list(range(N))
    assert np.allclose(run.loss, LOSS, rtol=1e-3)


def test_losses_alone_need_a_name(tmp_path: Path) -> None:
    bare = "\n".join(map(str, LOSS))
    for text, name in ((f"loss\n{bare}\n", "x.txt"), (bare, "train_loss.txt")):
        assert one(tmp_path, text, name).loss.tolist() == LOSS
    with pytest.raises(UnreadableRun, match=r"Write the names of its columns into the first line, e\.g\. loss"):
        one(tmp_path, bare, "numbers.txt")
    with pytest.raises(UnreadableRun, match=r"e\.g\. step,loss,lr"):
        one(tmp_path, table("", "{k},{v},1"), "numbers.csv")


def test_a_large_table_is_read_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{k},{v},{'' if k % 3 else 'x'}" for k, v in enumerate(LOSS)]
    rows[50], rows[60], rows[70], rows[80] = "50,nan,1", "60,-inf", " 70 , 1.5 ,7", "80,2.5 nats,1,2"
    text = "\n".join(["step,loss,other", *rows])
    made = []
    for limit in (0, 10**9):
        monkeypatch.setattr(delimited, "QUICK", limit)
        made.append(one(tmp_path, text))
    for a, b in (made, made[::-1]):
        assert np.array_equal(a.loss, b.loss, equal_nan=True)
        assert a.step.tolist() == b.step.tolist()
        assert a.notes == b.notes
        assert {k: s.value.tolist() for k, s in a.signals.items()} == {
            k: s.value.tolist() for k, s in b.signals.items()
        }
    assert "2 rows have another number of fields than the header's 3 (the first: row 62" in made[0].notes[0].text


def test_a_damaged_row_costs_one_row(tmp_path: Path) -> None:
    rows = [f"{k},{v}" for k, v in enumerate(LOSS)]
    rows[400] = "7"
    run = one(tmp_path, "\n".join(["step,loss", *rows]))
    assert run.loss.tolist() == LOSS[:400] + LOSS[401:]
    assert {n.id for n in run.notes} <= {"malformed-rows", "sampled-values"}
    assert any("7, between 399 and 401" in n.text for n in run.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"step,loss\n1,2.5\n", "holds one value of loss; a curve needs more"),
        (b"step,loss\n" + b"".join(b"%d,nan\n" % k for k in range(100)), "none of them is a finite number"),
        (bytes(range(256)) * 20, "is a binary file"),
        (b"name,city\nbob,rome\nann,oslo\n", "holds no loss curve"),
        (b"SQLite format 3\x00" + b"latest_metrics" * 99, "is a database that cannot be read"),
    ],
)
def test_what_holds_no_curve_gets_a_sentence(whyspike: Command, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "log").write_bytes(content)
    made = whyspike("diagnose", str(tmp_path / "log"))
    assert made.returncode == 2
    assert said in " ".join(made.stderr.split())
    assert "Traceback" not in made.stderr


def test_a_file_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_memory", lambda: 10_000)
    with pytest.raises(UnreadableRun, match=r"Thin it first, e\.g\. awk 'NR == 1 .* log\.csv > thin\.csv"):
        one(tmp_path, table("step,loss", "{k},{v}"))


# --------------------------------------------------------------------------- what the shape of an event says


def said(folder: Path, loss: np.ndarray, **columns: np.ndarray) -> Diagnosis:
    rows = [",".join(map(str, row)) for row in zip(range(len(loss)), loss.tolist(), *columns.values(), strict=True)]
    (folder / "log.csv").write_text("\n".join([",".join(["step", "loss", *columns]), *rows]))
    return diagnose(folder / "log.csv")


def noise(n: int = 1000) -> np.ndarray:
    return np.exp(0.05 * np.random.default_rng(3).standard_normal(n))


def test_a_bad_batch_and_a_moved_network_are_told_apart_by_their_shape(tmp_path: Path) -> None:
    batch, moved, gone = noise(), noise(), noise()
    batch[700] *= 30
    moved[700:800] *= 1 + 8 * np.exp(-np.arange(100) / 12)
    gone[700:] = np.nan
    sentences = [said(tmp_path, loss).answer.sentence for loss in (batch, moved, gone)]
    assert "The next value is back at the level" in sentences[0]
    assert "the network itself had moved" in sentences[1]
    assert "No value after it is finite" in sentences[2]
    assert all("`rec.step(loss)` after the update" in s for s in sentences)
    assert said(tmp_path, noise()).answer.status == "healthy"


def test_a_jump_of_the_learning_rate_is_likely_and_says_what_decides(tmp_path: Path) -> None:
    k = np.arange(1000)
    lr = np.where(k < 700, 0.05 * (1.001 + np.cos(np.pi * k / 700)), 0.1)
    loss = noise() * np.where(k >= 700, 1 + 4 * np.exp(-(k - 700) / 12), 1)
    made = said(tmp_path, loss, lr=lr)
    assert (made.answer.cause, made.verdicts[0].outcome) == ("lr-restart", "likely")
    assert "What would decide it: train on from just before the rise" in made.answer.sentence
    assert said(tmp_path, noise(), lr=lr).answer.status == "healthy"


def test_a_loss_scale_that_falls_is_said(tmp_path: Path) -> None:
    scale = np.repeat([65536.0, 32768.0, 32768.0, 16384.0], 250)
    made = said(tmp_path, noise(), loss_scale=scale)
    (note,) = [n for n in made.run.notes if n.id == "loss-scale"]
    assert "falls 2 times (at step 250, 750" in note.text
    assert made.answer.status == "healthy"
    assert not said(tmp_path, noise(), loss_scale=scale[::-1]).run.notes


# --------------------------------------------------------------------------- values that are means


def averaged(made: Diagnosis) -> list[str]:
    return [n.text for n in made.run.notes if n.id == "averaged-values"]


def test_moving_means_are_said_and_taken_apart(tmp_path: Path) -> None:
    loss = noise(1500)
    loss[900] *= 12
    ema = loss.copy()
    for k in range(1, len(ema)):
        ema[k] = 0.95 * ema[k - 1] + 0.05 * loss[k]
    window = np.convolve(loss, np.ones(20) / 20, "valid")
    (of_ema,), (of_window,) = averaged(said(tmp_path, ema)), averaged(said(tmp_path, window))
    assert "exponential moving average" in of_ema
    assert "at step 900 " in of_ema
    assert "a mean over the last 20 steps" in of_window
    assert "at step 881 " in of_window  # the mean over the steps 881 to 900 is the first that holds it
    (rounded,) = averaged(said(tmp_path, np.round(ema, 3)))
    assert "rounded too much to be taken apart" in rounded


@pytest.mark.parametrize("kind", ["losses", "full batch", "drift", "running mean"])
def test_what_is_no_moving_mean_is_not_called_one(tmp_path: Path, kind: str) -> None:
    k = np.arange(1500)
    loss = {
        "losses": noise(1500) * (1 + 2 * np.exp(-k / 200)),
        "full batch": 0.4 + 2 * np.exp(-k / 300) + 0.05 * np.sin(k / 20),
        "drift": 10 + np.cumsum(np.random.default_rng(0).normal(0, 0.01, 1500)) + 0.03 * noise(1500),
        "running mean": np.concatenate([np.cumsum(e) / np.arange(1, 101) for e in noise(1500).reshape(15, 100)]),
    }[kind]
    assert averaged(said(tmp_path, loss)) == []


def test_the_rows_of_several_processes_are_not_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    level = [1.0, 3.0, 0.5, 2.0]  # each has its own share of the data
    values = {(k, r): level[r] * float(np.exp(0.05 * rng.standard_normal())) for k in range(400) for r in range(4)}
    rows = "".join(f"{k},{r},{v!r}\n" for (k, r), v in values.items())
    (tmp_path / "log.csv").write_text("step,rank,loss\n" + rows)
    made = diagnose(tmp_path / "log.csv")
    assert made.record is not None
    assert made.record.loss.tolist() == [values[k, 0] for k in range(400)]
    (note,) = made.run.notes
    assert note.id == "rank-local"
    assert "4 processes" in note.text
    assert not made.events
    # one process, which says so in every row
    (tmp_path / "log.csv").write_text("step,rank,loss\n" + "".join(f"{k},0,{values[k, 0]}\n" for k in range(400)))
    assert not diagnose(tmp_path / "log.csv").run.notes


def test_a_reservoir_of_a_run_is_said_to_be_a_sample_and_no_event_rests_on_its_gaps(tmp_path: Path) -> None:
    """TensorBoard's and W&B's downloads keep 1,000 or so values at random steps of a longer run."""
    rng = np.random.default_rng(0)
    loss = (0.3 + 2 * np.exp(-np.arange(20_000) / 3000)) * np.exp(0.1 * rng.standard_normal(20_000))
    kept = np.sort(rng.choice(20_000, 1000, replace=False))
    rows = "".join(f"{1e9 + k},{k},{float(loss[k])!r}\n" for k in kept)
    (tmp_path / "run-x-tag-loss.csv").write_text("Wall time,Step,Value\n" + rows)
    made = diagnose(tmp_path / "run-x-tag-loss.csv")
    assert [n.id for n in made.run.notes] == ["sampled-values"]
    assert made.answer.status == "healthy"
    loss[kept[600]] *= 30
    rows = "".join(f"{1e9 + k},{k},{float(loss[k])!r}\n" for k in kept)
    (tmp_path / "run-x-tag-loss.csv").write_text("Wall time,Step,Value\n" + rows)
    made = diagnose(tmp_path / "run-x-tag-loss.csv")
    assert [e.step for e in made.events] == [kept[600]]
    assert "that batch" not in made.answer.sentence  # the values beside it are 20 steps away


def test_bins_of_an_export_are_said_and_a_spike_in_one_is_not_called_a_single_step(tmp_path: Path) -> None:
    """W&B's export puts neighbouring steps into one value and keeps the smallest and the largest beside it."""
    rng = np.random.default_rng(0)
    loss = np.exp(0.1 * rng.standard_normal(20_000))
    loss[12_345] *= 100
    bins = loss.reshape(1000, 20)
    rows = "".join(f"{20 * k},{b.mean()},{b.min()},{b.max()}\n" for k, b in enumerate(bins))
    (tmp_path / "wandb_export.csv").write_text("Step,run-1 - loss,run-1 - loss__MIN,run-1 - loss__MAX\n" + rows)
    made = diagnose(tmp_path / "wandb_export.csv")
    assert [n.id for n in made.run.notes] == ["averaged-values"]
    assert "that batch" not in made.answer.sentence
    (tmp_path / "wandb_export.csv").write_text(
        "Step,run-1 - loss,run-1 - loss__MIN,run-1 - loss__MAX\n"
        + "".join(f"{k},{v},{v},{v}\n" for k, v in enumerate(loss))
    )
    assert not diagnose(tmp_path / "wandb_export.csv").run.notes


@pytest.mark.parametrize("every", [50, 60])
def test_a_log_of_every_kth_step_meets_the_last_batch_now_and_then(tmp_path: Path, every: int) -> None:
    """500 epochs of 1,001 steps, the last of each five times as high: the log shows one in 50, or in 60, of them."""
    size, n = 1001, 500
    step = np.arange((size - 1) % every, size * n, every)
    last = step % size == size - 1
    assert last.sum() == -(-n // every)
    quiet = np.exp(0.05 * np.random.default_rng(0).standard_normal(len(step)))

    def said(loss: np.ndarray) -> Diagnosis:
        rows = "".join(f"{k},{v!r}\n" for k, v in zip(step.tolist(), loss.tolist(), strict=True))
        (tmp_path / "log.csv").write_text("step,loss\n" + rows)
        return diagnose(tmp_path / "log.csv", steps_per_epoch=size)

    made = said(np.where(last, 5 * quiet, quiet))
    assert made.answer.cause == "logging-alias"
    assert made.verdicts[0].outcome == "confirmed"  # by arithmetic
    assert f"every {size * every:,} steps" in made.answer.sentence
    assert said(quiet).answer.status == "healthy"
    elsewhere = np.roll(last, 3) | (np.random.default_rng(1).random(len(last)) < 0.001)  # at no one step of the epoch
    assert said(np.where(elsewhere, 5 * quiet, quiet)).answer.cause != "logging-alias"


def test_a_step_without_a_digit_costs_its_own_lines(tmp_path: Path) -> None:
    steps = [f"[step={k}/739328,epoch=0]\n    train/CrossEntropyLoss={11 - 0.1 * k:.3f}" for k in range(1, 21)]
    steps[4] = steps[4].replace("step=5", "step=,")
    path = tmp_path / "olmo.log"
    path.write_text("\n".join(steps), encoding="utf-8")
    (run,) = read_all(Source(path))
    assert run.reader == "olmo"
    assert {1, 4, 6, 20} <= set(run.step.tolist())
