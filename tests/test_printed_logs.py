"""Logs as tools print them: a few lines of each, to the letter, and what they must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whyspike.logs.source import Source
from whyspike.readers import read_all
from whyspike.types import Run

LOSS = [round(3 - 0.01 * k + 0.2 * ((k * 7) % 5) / 5, 3) for k in range(100)]


def one(folder: Path, text: str, name: str = "log.txt") -> Run:
    (folder / name).write_text(text, encoding="utf-8")
    (run,) = read_all(Source(folder / name))
    return run


def detectron2(k: int, v: float) -> str:
    return (
        f"[05/23 23:57:03] d2.utils.events INFO:  eta: 1 day, 0:31:57  iter: {20 * k + 19}  total_loss: {v}  "
        f"loss_cls: 4.401  loss_box_reg: 0.001  time: 0.9813  data_time: 0.0254  lr: 0.000400  max_mem: 4547M"
    )


def olmo(k: int, v: float) -> str:
    return (
        f"2025-12-12 11:05:33.1\thost:0\tolmo.train:967\tINFO\t[step={k + 1:,}/739,328,epoch=0]\n"
        f"    optim/total_grad_norm=0.3\n    train/CrossEntropyLoss={v}\n    train/Perplexity=12.18"
    )


def cyclegan(k: int, v: float) -> str:
    return (
        f"(epoch: {k // 10 + 1}, iters: {100 * (k % 10 + 1)}, time: 0.092, data: 0.002) D_A: 0.2 G_A: 0.3 cycle_A: {v} "
    )


def megatron(k: int, v: float) -> str:
    return (
        f" [2024-05-01 12:00:00] iteration {10 * (k + 1):8d}/  500000 | consumed samples: {2560 * (k + 1):12d} | elapsed "
        f"time per iteration (ms): 512.3 | learning rate: 1.0E-04 | global batch size: 256 | lm loss: {v:.6E} | loss "
        "scale: 1.0 | grad norm: 0.423 | number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def nanogpt(k: int, v: float) -> str:
    evaluation = f"step {10 * k}: train loss 4.2874, val loss 4.2823\n" if k % 10 == 0 else ""
    return f"{evaluation}iter {10 * k}: loss {v}, time 21332.91ms, mfu 10.30%"


def llmc(k: int, v: float) -> str:
    return f"step {k + 1:4d}/19560 | loss {v} (+nanz)| norm 15.3686 (+nanz)| lr 8.57e-07 | 6074.28 ms | 25.1% bf16 MFU | 86312 tok/s"


def llmc_file(k: int, v: float) -> str:
    return f"s:{k} trl:{v} lr:0.000001 norm:15.37" + (f"\ns:{k} tel:10.9" if k % 50 == 0 else "")


def modded(k: int, v: float) -> str:
    return f"step:{k}/1750 train_loss:{v} train_time:252ms step_avg:nanms"


def mmdet(k: int, v: float) -> str:
    return (
        f"2020-11-20 17:05:39,311 - mmdet - INFO - Epoch [{k // 10 + 1}][{50 * (k % 10 + 1)}/503]\tlr: 1.978e-03, eta: 1 day, "
        f"6:21:05, time: 0.420, data_time: 0.051, memory: 3529, loss_cls: 1.0567, loss_bbox: 0.6, loss: {v}"
    )


def mmengine(k: int, v: float) -> str:
    return (
        f"2023/03/01 12:00:00 - mmengine - INFO - Iter(train) [{50 * (k + 1):5d}/160000]  lr: 9.9e-03  eta: 1 day, 1:00:00  "
        f"time: 0.5  data_time: 0.01  memory: 5000  loss: {v}  decode.loss_ce: 0.5"
    )


def mmdet_json(k: int, v: float) -> str:
    train = (
        f'{{"mode": "train", "epoch": {k // 10 + 1}, "iter": {50 * (k % 10 + 1)}, "lr": 0.002, "memory": 3529, '
        f'"data_time": 0.05, "loss": {v}, "time": 0.4}}'
    )
    return train + ('\n{"mode": "val", "epoch": 1, "iter": 128, "lr": 0.002, "bbox_mAP": 0.1}' if k % 10 == 9 else "")


def fairseq(k: int, v: float) -> str:
    return (
        "2021-01-01 00:00:00 | INFO | train_inner | "
        f'{{"epoch": {k // 40 + 1}, "update": {(k + 1) / 40:.3f}, "loss": "{v}", "ppl": "42.9", "wps": "1234", '
        f'"num_updates": "{100 * (k + 1)}", "lr": "1.2e-05", "gnorm": "1.9"}}'
    )


def print_it(k: int, v: float) -> str:
    return f"Epoch {k // 20 + 1}/5, Step {k % 20 + 1}/20, Loss: {v}"


def tutorial(k: int, v: float) -> str:
    return f"[{k // 20 + 1}, {2000 * (k % 20 + 1):5d}] loss: {v}"


FORMATS = [
    (detectron2, "detectron2", range(19, 2000, 20)),
    (olmo, "olmo", range(1, 101)),
    (cyclegan, "cyclegan", range(100, 10_001, 100)),
    (megatron, "megatron", range(10, 1001, 10)),
    (nanogpt, "nanogpt", range(0, 1000, 10)),
    (llmc, "llm.c", range(1, 101)),
    (llmc_file, "llm.c", range(100)),
    (modded, "llm.c", range(100)),
    (mmdet, "openmmlab", [503 * (k // 10) + 50 * (k % 10 + 1) for k in range(100)]),
    (mmengine, "openmmlab", range(50, 5001, 50)),
    (mmdet_json, "openmmlab", range(50, 5001, 50)),
    (fairseq, "fairseq", range(100, 10_001, 100)),
    (print_it, "printed", range(1, 101)),
    (tutorial, "printed", range(2000, 200_001, 2000)),
]


@pytest.mark.parametrize(("line", "reader", "steps"), FORMATS, ids=[f[0].__name__ for f in FORMATS])
def test_a_log_gives_its_losses_and_steps(line, reader, steps, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    head = "2025-01-01 some configuration: lr=0.1\nmodel: loss = CrossEntropy()\n\n"
    run = one(tmp_path, head + "\n".join(line(k, v) for k, v in enumerate(LOSS)) + "\n")
    assert run.reader == reader
    assert run.loss.tolist() == LOSS
    assert run.step.tolist() == list(steps)


def test_what_a_format_averages_is_said(tmp_path: Path) -> None:
    said = {}
    for line in (detectron2, megatron, mmdet, fairseq, nanogpt, olmo):
        run = one(tmp_path, "\n".join(line(k, v) for k, v in enumerate(LOSS)))
        said[line.__name__] = {note.id for note in run.notes}
    averaged = {"detectron2", "megatron", "mmdet", "fairseq"}
    assert {name for name, ids in said.items() if "averaged-values" in ids} == averaged
    assert "rank-local" in said["nanogpt"]


def test_a_traceback_at_the_end_is_said(tmp_path: Path) -> None:
    text = "\n".join(olmo(k, v) for k, v in enumerate(LOSS))
    end = '\nTraceback (most recent call last):\n  File "train.py", line 1, in <module>\nRuntimeError: CUDA out of memory\n'
    run = one(tmp_path, text + end)
    (note,) = run.notes
    assert note.id == "truncated-tail"
    assert "RuntimeError: CUDA out of memory" in note.text


def test_a_progress_bar_drawn_over_itself(tmp_path: Path) -> None:
    tqdm = "".join(
        f"\rEpoch {k // 50}:  40%|████      | {k % 50 + 1}/50 [00:01<00:02, 30.1it/s, loss={v}]"
        for k, v in enumerate(LOSS)
    )
    run = one(tmp_path, tqdm)
    assert run.loss.tolist() == LOSS
    assert run.steps_per_epoch == 50
    assert run.step.tolist() == list(range(1, 101))


def test_keras_prints_its_epoch_in_a_line_of_its_own(tmp_path: Path) -> None:
    lines = []
    for e in range(2):
        lines.append(f"Epoch {e + 1}/2")
        lines += [
            f"\x1b[1m{k + 1:3d}/50\x1b[0m \x1b[32m━━━━━\x1b[0m \x1b[1m0s\x1b[0m 5ms/step - loss: {LOSS[50 * e + k]}"
            for k in range(50)
        ]
    run = one(tmp_path, "\n".join(lines))
    assert run.loss.tolist() == LOSS
    assert run.step.tolist() == list(range(1, 101))


def test_a_results_file_of_ultralytics_is_summed(tmp_path: Path) -> None:
    head = "                  epoch,         train/box_loss,         train/cls_loss,        metrics/mAP50(B),           val/box_loss"
    rows = [f"{k + 1:23d}, {v:22.5f}, {1.0:22.5f}, 0.5, 0.7" for k, v in enumerate(LOSS)]
    run = one(tmp_path, "\n".join([head, *rows]), "results.csv")
    assert run.reader == "ultralytics"
    assert np.allclose(run.loss, np.array(LOSS) + 1)
    assert "epoch-only" in {note.id for note in run.notes}
