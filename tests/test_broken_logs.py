"""Logs that are cut off, still being written or larger than the memory: a sentence, or what there is with a note."""

from __future__ import annotations

import gzip
import importlib
import os
import pkgutil
import re
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike import readers
from whyspike.errors import UnreadableRun
from whyspike.logs import source as sources
from whyspike.logs.source import Source
from whyspike.readers import read_all, wandb_local
from whyspike.types import Run

LOSS = [round(2 / (k + 1) + 0.01 * (k % 7), 4) for k in range(120)]


def one(path: Path) -> Run:
    (run,) = read_all(Source(path))
    return run


def ids(run: Run) -> list[str]:
    return [note.id for note in run.notes]


# --------------------------------------------------------------------------- larger than the memory


def sparse(path: Path, begin: bytes) -> Path:
    """A file that claims to be as large as the memory and takes no room on the disk."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(begin)
    os.truncate(path, sources._memory())
    return path


@pytest.mark.skipif(not sources._memory(), reason="this machine does not say how much memory it has")
def test_a_file_larger_than_memory_is_refused_and_does_not_hide_what_lies_beside_it(
    whyspike: Command, tmp_path: Path
) -> None:
    from test_loggers import event

    table = sparse(tmp_path / "all" / "big.csv", b"step,loss\n1,2.0\n2,1.9\n")
    events = sparse(tmp_path / "all" / "tb" / "events.out.tfevents.1.host", event(0, "loss", 2.0))
    for path, said in ((table, "Thin it first, e.g. awk"), (events, "into a CSV file"), (events.parent, "into a CSV")):
        with pytest.raises(UnreadableRun, match=r"of memory; about 12 times the file are needed\. ") as error:
            read_all(Source(path))
        assert said in str(error.value)
    (tmp_path / "all" / "small.csv").write_text("step,loss\n" + "".join(f"{k},{v}\n" for k, v in enumerate(LOSS)))
    made = whyspike("diagnose", "all", "--format", "concise")
    assert made.returncode == 0
    assert re.search(r"left out: all/big\.csv has [\d.]+ GB", made.stderr)


def test_what_is_larger_than_memory_when_it_is_unpacked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_memory", lambda: 12_000)
    rows = "step,loss\n" + "1,2.0\n" * 2000
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(rows.encode()))
    with pytest.raises(UnreadableRun, match=r"zcat log\.csv\.gz \| awk 'NR == 1 \|\| NR % 100 == 0' > thin\.csv"):
        read_all(Source(tmp_path / "log.csv.gz"))


# --------------------------------------------------------------------------- still being written


def test_an_event_file_that_is_still_being_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path), flush_secs=3600)
    for k in range(400):
        writer.add_scalar("train/loss", 2 / (k + 1), k)
        if k % 100 == 99:
            writer.flush()
            assert len(one(tmp_path)) == k + 1
    writer.close()


def test_every_place_where_an_event_file_can_be_cut(tmp_path: Path) -> None:
    from test_loggers import event

    whole = [event(k, "loss", v) for k, v in enumerate(LOSS)]
    path = tmp_path / "events.out.tfevents.1.host"
    for kept in range(len(whole[-1])):
        path.write_bytes(b"".join(whole[:-1]) + whole[-1][:kept])
        assert np.allclose(one(tmp_path).loss, LOSS[:-1])
        assert ids(one(tmp_path)) == (["truncated-tail"] if kept else [])


# --------------------------------------------------------------------------- a row of a million


@pytest.mark.slow
def test_a_row_with_another_number_of_fields_among_a_million(tmp_path: Path) -> None:
    n = 1_000_000
    loss = 1 + 0.1 * np.random.default_rng(0).standard_normal(n).round(4)
    rows = [f"{k},{v:.5f},0.001" for k, v in enumerate(loss)]
    rows[-1] += ",7,8"
    path = tmp_path / "log.csv"
    for last, length, said in (
        (rows[-1], n, "row 1,000,001, with 5"),
        ("999999,1.0", n - 1, "the last row is cut off"),
    ):
        path.write_text("\n".join(["step,loss,lr", *rows[:-1], last]) + "\n")
        run = one(path)
        assert len(run) == length
        assert np.allclose(run.loss, loss[:length], atol=1e-5)
        assert any(said in note.text for note in run.notes)


# --------------------------------------------------------------------------- W&B


def wandb_file(n: int) -> list[bytes]:
    """What W&B keeps of a run that has not ended: a head, then a record for each step."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    made = [b":W&B\xee\xbe\x00"]
    for k in range(n):
        item = field(1, field(2, b"loss") + b"\x82\x01" + bytes([6]) + f"{LOSS[k]:.4f}".encode())
        record = field(2, item + field(2, bytes([8, k])))
        made.append(b"\0\0\0\0" + len(record).to_bytes(2, "little") + b"\x01" + record)
    return made


def test_every_place_where_a_wandb_file_can_be_cut(tmp_path: Path) -> None:
    parts = wandb_file(100)
    path = tmp_path / "run-x.wandb"
    for kept in range(len(parts[-1])):
        path.write_bytes(b"".join(parts[:-1]) + parts[-1][:kept])
        assert one(path).loss.tolist() == LOSS[:99]
        (note,) = one(path).notes
        assert note.id == "truncated-tail"
    for kept in range(1, 24):  # within the head, or within the first record
        path.write_bytes(b"".join(parts)[:kept])
        with pytest.raises(UnreadableRun):
            read_all(Source(path))


def test_a_wandb_file_is_recognised_by_its_head(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"".join(wandb_file(100)))
    assert one(tmp_path / "x").reader == wandb_local.NAME


# --------------------------------------------------------------------------- what is no printed log, and large


def searched() -> list[tuple[str, re.Pattern[str], str]]:
    """Every pattern that a whole text is searched for, and what the reader says that its matches hold."""
    found = []
    for module in pkgutil.iter_modules(readers.__path__):
        held = importlib.import_module(f"whyspike.readers.{module.name}")
        text = Path(str(held.__file__)).read_text(encoding="utf-8")
        for name, holds in re.findall(r"many\(source, (\w+), (\"[^\"]*\"|'[^']*')\)", text):
            found.append((f"{module.name}.{name}", getattr(held, name), holds[1:-1]))
        found += [(f"{module.name}.FORMS", form, holds) for form, holds in getattr(held, "FORMS", {}).items()]
        n = len(re.findall(r"many\(source, (?!form, holds|RECORD, FORMS)", text))
        assert n == sum(name.startswith(f"{module.name}.") and ".FORMS" not in name for name, _, _ in found)
    return found


@pytest.mark.parametrize(("name", "pattern", "holds"), searched(), ids=[name for name, _, _ in searched()])
def test_a_match_holds_what_the_text_is_looked_through_for(name: str, pattern: re.Pattern[str], holds: str) -> None:
    @settings(max_examples=15, deadline=None, database=None)
    @given(st.from_regex(pattern))
    def holds_it(text: str) -> None:
        assert all(holds in match[0] for match in pattern.finditer(text))

    holds_it()


@pytest.mark.parametrize("name", ["nanogpt.txt", "llmc.txt", "megatron.txt", "olmo.log", "fairseq.log", "loss_log.txt",
                                  "detectron2.log", "mmdet.json", "mmdet.log", "console.txt"])  # fmt: skip
def test_a_log_that_begins_after_much_else_is_recognised(tmp_path: Path, name: str) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from fuzz_readers import SAMPLES

    (tmp_path / name).write_bytes(SAMPLES[name])
    before = b"".join(b"building the model, layer %d of 3000\n" % k for k in range(3000))
    (tmp_path / f"long-{name}").write_bytes(before + SAMPLES[name])
    a, b = one(tmp_path / name), one(tmp_path / f"long-{name}")
    assert (a.reader, a.loss.tolist()) == (b.reader, b.loss.tolist())


def test_a_large_table_is_not_searched_for_every_line_that_a_tool_prints(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,epoch,loss,lr\n" + "".join(f"{k},{k // 1000},{k % 977},0.001\n" for k in range(300_000)))
    source = Source(path)
    text = source.text
    start = time.process_time()
    for _, pattern, _ in searched():
        assert pattern.search(text) is None
    all_of_them = time.process_time() - start
    start = time.process_time()
    sure = {reader.NAME: sure for reader in readers.readers() if (sure := reader.sniff(source))}
    assert time.process_time() - start < 0.7 * all_of_them
    assert sure == {"csv": 0.8}
