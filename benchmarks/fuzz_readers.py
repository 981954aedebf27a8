"""Broken logs: no input may crash a reader or hang it.

    python benchmarks/fuzz_readers.py                    # 20,000 inputs, prints what broke
    python benchmarks/fuzz_readers.py --inputs 500 --seed 7
    WHYSPIKE_REAL_LOGS=FOLDER python benchmarks/fuzz_readers.py --write    # writes docs/benchmarks/fuzz_readers.md

Seeds are logs as each format writes them (and the real logs, where their folder is named), a few thousand bytes of
each. An input is one of them after one to six mutations: bits flipped, a piece cut out, doubled, moved or put in from
another log, numbers made huge, tiny, negative or no numbers, delimiters and line ends changed, head or tail lost. What
is allowed is a run or an UnreadableRun, within 5 seconds of the processor and 60 on the clock (the machine may have
other work); every 20th run is diagnosed as well.
"""

# ruff: noqa: E501  (lines of logs stay whole)

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from whyspike.errors import UnreadableRun
from whyspike.logs.source import Source
from whyspike.observe import observe
from whyspike.readers import read_all
from whyspike.suspect import suspect

LIMIT_S = 5  # of the processor
CLOCK_S = 60
OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "fuzz_readers.md"
PIECE = 6000  # bytes of a seed: more of the same finds nothing new
ODD = (b"nan", b"inf", b"-inf", b"1e999", b"-1", b"0", b"99999999999999999999999", b"1e-320", b"", b"None", b"\xff\xfe",
       b"\x00", b'"', b"{", b"}", b"[", b",", b"\t", b"\n", b"\r", b"=", b":", b"%", b"\xe2\x82\xac")  # fmt: skip
NUMBER = re.compile(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?")


class Hung(Exception):
    """An input took too long."""


def seeds(folder: Path) -> dict[str, bytes]:
    """The beginning of a log of every format, by the name of its file."""
    made: dict[str, bytes] = dict(SAMPLES)
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "events")) as writer:
        for k in range(60):
            writer.add_scalar("train/loss", 1.0 / (k + 1), k)
    event = next((folder / "events").iterdir())
    made[event.name] = event.read_bytes()
    made["run-abc.wandb"] = wandb_file()
    made["mlflow.db"] = database(
        folder,
        "run_uuid TEXT, key TEXT, step INT, value REAL, is_nan INT, timestamp INT",
        [("r", "loss", k, 2 / (k + 1), 0, k) for k in range(60)],
        beside="latest_metrics",
    )
    made["trackio.db"] = database(
        folder,
        "id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT",
        [(k, "", "r", k, f'{{"loss": {2 / (k + 1):.4f}}}') for k in range(60)],
    )
    made["mlrun/metrics/loss"] = rows("", lambda k, v: f"17000000{k:02d} {v:.5f} {k}")
    made["recorded/record.frames"] = recorded(folder)
    real = os.environ.get("WHYSPIKE_REAL_LOGS")
    for path in sorted(Path(real).rglob("*")) if real else ():
        if path.is_file() and path.name != "README.md":
            made[path.name] = path.read_bytes()[:PIECE]
    return made


def wandb_file() -> bytes:
    """What W&B keeps of 60 steps, by hand: blocks of records, a history row in each."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    raw = b":W&B\xee\xbe\x00"
    for k in range(60):
        item = field(2, b"loss")
        history = field(1, item + b"\x82\x01" + bytes([6]) + f"{2 / (k + 1):.4f}".encode()) + field(2, bytes([8, k]))
        record = field(2, history)
        raw += b"\0\0\0\0" + len(record).to_bytes(2, "little") + b"\x01" + record
    return raw


def database(folder: Path, columns: str, rows_of: list[tuple[Any, ...]], beside: str = "") -> bytes:
    """An SQLite file with a table `metrics`, and an empty one beside it."""
    path = folder / "seed.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute(f"CREATE TABLE metrics ({columns})")
        if beside:
            made.execute(f"CREATE TABLE {beside} (key TEXT)")
        made.executemany(f"INSERT INTO metrics VALUES ({', '.join('?' * len(rows_of[0]))})", rows_of)
        made.commit()
    raw = path.read_bytes()
    path.unlink()
    return raw


def recorded(folder: Path) -> bytes:
    """The frames of a run that was recorded; its folder stays, for its header."""
    import torch

    import whyspike

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with whyspike.watch(model, optimizer, path=folder / "recorded") as rec:
        for _ in range(60):
            loss = (model(torch.randn(4, 3)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.step(loss)
    return (folder / "recorded" / "record.frames").read_bytes()


def rows(header: str, row: Any, n: int = 60) -> bytes:
    return "\n".join(
        [*([header] if header else []), *(row(k, 2.0 / (k + 1) + 0.01 * (k % 7)) for k in range(n))]
    ).encode()


SAMPLES: dict[str, bytes] = {
    "metrics.csv": rows("epoch,step,train_loss,val_loss,lr", lambda k, v: f"{k // 10},{k},{v:.4f},,0.001"),
    "log.tsv": rows("step\tloss", lambda k, v: f"{k}\t{v:.5f}"),
    "export.csv": rows(
        '"Step","run - loss","run - loss__MIN","run - loss__MAX"', lambda k, v: f'"{k}","{v}","{v}","{v}"'
    ),
    "log.jsonl": rows("", lambda k, v: f'{{"step": {k}, "loss": {v:.5f}, "lr": 1e-3, "epoch": {k / 20:.3f}}}'),
    "trainer_state.json": (
        '{"log_history": ['
        + ", ".join(f'{{"epoch": {k / 20}, "loss": {2 / (k + 1):.4f}, "step": {k + 1}}}' for k in range(60))
        + '], "max_steps": 60, "num_train_epochs": 3, "train_batch_size": 8}'
    ).encode(),
    "values.json": (
        '{"lm loss": {"values": {' + ", ".join(f'"{k}": {2 / (k + 1):.4f}' for k in range(60)) + "}}}"
    ).encode(),
    "history.json": ('{"loss": [' + ", ".join(f"{2 / (k + 1):.4f}" for k in range(60)) + "]}").encode(),
    "results.csv": rows("epoch, train/box_loss, train/cls_loss, lr/pg0", lambda k, v: f"{k}, {v:.4f}, {v:.4f}, 0.01"),
    "nanogpt.txt": rows("", lambda k, v: f"iter {k}: loss {v:.4f}, time 12.01ms, mfu 31.20%"),
    "llmc.txt": rows("", lambda k, v: f"step {k + 1:4d}/60 | loss {v:.6f} (+0.12z)| norm 1.2 (+0.1z)| lr 6.00e-04 | 100 ms"),
    "steps.txt": rows("", lambda k, v: f"{k} train {v:.4f}"),
    "megatron.txt": rows(
        "",
        lambda k, v: f" iteration {k:8d}/ 60 | consumed samples: {k * 8} | elapsed time per iteration (ms): 10.0 | "
        f"learning rate: 1.0E-04 | lm loss: {v:.6E} | loss scale: 1.0 | grad norm: 1.0 |",
    ),
    "olmo.log": rows("", lambda k, v: f"2024-01-01 00:00:00 INFO [step={k}/60]\n    train/CrossEntropyLoss={v:.3f}"),
    "fairseq.log": rows(
        "", lambda k, v: f'2021-01-01 | INFO | train_inner | {{"epoch": 1, "update": {k / 20:.3f}, "loss": "{v:.3f}", '
        f'"num_updates": "{k}", "lr": "0.1"}}'
    ),
    "loss_log.txt": rows(
        "================ Training Loss (Mon) ================",
        lambda k, v: f"(epoch: {k // 10 + 1}, iters: {k % 10 * 100}, time: 0.1, data: 0.2) D_A: {v:.3f} G_A: {v:.3f}",
    ),
    "detectron2.log": rows(
        "", lambda k, v: f"[01/01 00:00:00 d2.utils.events]:  eta: 0:00:01  iter: {k * 20}  total_loss: {v:.3f}  lr: 0.01"
    ),
    "mmdet.json": rows("", lambda k, v: f'{{"mode": "train", "epoch": {k // 10 + 1}, "iter": {k % 10 + 1}, "loss": {v:.4f}}}'),
    "mmdet.log": rows(
        "", lambda k, v: f"2021-01-01 - mmdet - INFO - Epoch [{k // 10 + 1}][{k % 10 + 1}/10]\tlr: 1.0e-02, loss: {v:.4f}"
    ),
    "tqdm.txt": rows("", lambda k, v: f" {k}%|###   | {k}/60 [00:01<00:02, 10.0it/s, loss={v:.4f}]").replace(b"\n", b"\r"),
    "keras.txt": rows("", lambda k, v: f"{k + 1}/60 [=====>....] - ETA: 0s - loss: {v:.4f} - accuracy: 0.5"),
    "console.txt": rows("training begins", lambda k, v: f"[{k}] loss = {v:.4f} acc=0.1"),
}  # fmt: skip


def mutated(rng: random.Random, text: bytes, other: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 6)):
        if not data:
            break
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 8, 64, 1024)))
        match rng.randrange(10):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[a:b]
            case 2:
                data[a:a] = data[a:b] * rng.randint(1, 4)
            case 3:
                data[a:b] = other[a:b]
            case 4:
                found = list(NUMBER.finditer(bytes(data)))
                if found:
                    at = rng.choice(found)
                    data[at.start() : at.end()] = rng.choice(ODD)
            case 5:
                data[a:a] = rng.choice(ODD)
            case 6:
                old, new = rng.choice(
                    ((b",", b";"), (b"\n", b"\r\n"), (b".", b","), (b" ", b""), (b'"', b"'"), (b":", b"="))
                )
                data = bytearray(bytes(data).replace(old, new, rng.choice((1, 10, -1))))
            case 7:
                data = data[a:] if rng.random() < 0.5 else data[:b]
            case 8:
                lines = bytes(data).split(b"\n")
                rng.shuffle(lines)
                data = bytearray(b"\n".join(lines))
            case _:
                data[a:a] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
    return bytes(data)


def _too_long(signum: int, frame: Any) -> None:
    raise Hung


def _page(asked: Any, logs: list[Any], outcomes: Counter[str], said: list[str], slowest: float) -> str:
    return "\n".join(
        [
            "# Broken logs",
            "",
            f"Written by `python benchmarks/fuzz_readers.py --inputs {asked.inputs} --seed {asked.seed} --write`; its "
            "docstring says how an input is made. Seeds: " + ", ".join(name for name, _ in logs) + ".",
            "",
            "| | |",
            "|---|---|",
            f"| inputs | {asked.inputs:,}, from {len(logs)} logs |",
            f"| read | {outcomes['read']:,} |",
            f"| of these diagnosed as well | {outcomes['diagnosed']:,} |",
            f"| refused in words | {outcomes['refused in words']:,} |",
            f"| crashed or over {LIMIT_S} s | {len(said)} kinds |",
            f"| slowest | {slowest:.2f} s of the processor |",
            "",
            *(f"- {words}" for words in said),
            *([""] if said else []),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Broken logs, given to every reader.")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/fuzz_readers.md")
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGPROF, _too_long)
    rng, outcomes, broken, slowest = random.Random(asked.seed), Counter[str](), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = sorted(seeds(folder).items())
        (folder / "mlrun").mkdir()
        (folder / "mlrun" / "meta.yaml").write_text("run_id: r\n")
        for k in range(asked.inputs):
            (called, text), (_, other) = rng.choice(logs), rng.choice(logs)
            path = folder / called
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutated(rng, text, other))
            source = Source(folder / called.split("/")[0])
            start = time.process_time()
            signal.alarm(CLOCK_S)
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                runs = read_all(source)
                outcomes["read"] += 1
                if k % 20 == 0:
                    suspect(observe(runs[-1]))
                    outcomes["diagnosed"] += 1
            except UnreadableRun:
                outcomes["refused in words"] += 1
            except Hung:
                broken[f"{called}: took over {LIMIT_S} s"] += 1
            except Exception:
                last = traceback.format_exc().strip().splitlines()
                broken[f"{called}: {last[-1]} ({last[-3].strip() if len(last) > 2 else ''})"] += 1
                Path(f"{path.name}.broken").write_bytes(path.read_bytes()) if os.environ.get("KEEP") else None
            finally:
                signal.alarm(0)
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - start)
            path.unlink()
    said = [f"{n} x {words}" for words, n in broken.most_common()]
    if asked.write:
        OUT.write_text(_page(asked, logs, outcomes, said, slowest), encoding="utf-8")
    print(f"{asked.inputs:,} inputs from {len(logs)} logs: {dict(outcomes)}; slowest {slowest:.2f} s")
    print("\n".join(said))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
