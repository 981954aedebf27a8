"""A record survives what ends a training: a kill, a full disk, an exception, the cap of its own size."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike.capsule import load
from whyspike.readers.runfolder import read
from whyspike.runfolder import RunFolder

torch.set_num_threads(1)

SETUP = """
import sys, time, resource, warnings
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
import whyspike
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=.01)
loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=4, shuffle=True)
path = sys.argv[1]

def epochs(rec):
    while True:
        for x, y in rec.batches(loader):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            rec.step(loss)
            yield loss.item()
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_is_readable_up_to_the_last_second(tmp_path: Path) -> None:
    child = start(
        """
        with whyspike.watch(model, optimizer, path=path) as rec:
            for loss in epochs(rec):
                print(time.monotonic(), repr(loss), flush=True)
                time.sleep(.002)
        """,
        str(tmp_path / "run"),
    )
    lines: list[str] = []
    assert child.stdout is not None
    try:
        first = None
        while first is None or time.monotonic() < first + 3.0:
            lines.append(child.stdout.readline())
            assert lines[-1], child.stderr.read() if child.stderr else ""
            first = first or time.monotonic()
    finally:
        child.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        rest, _ = child.communicate()
    ran = [line.split() for line in lines + rest.splitlines() if len(line.split()) == 2]
    run = read(tmp_path / "run")
    old = [loss for at, loss in ran if float(at) < killed - 1.3]  # 1 s, and a loaded machine
    assert len(old) > 100
    assert [repr(v) for v in run.loss.tolist()][: len(old)] == old
    assert run.n_samples is not None
    assert run.n_samples.tolist() == [4] * len(run)
    for path in run.capsules:  # all or nothing
        assert load(path).steps
    assert not [m for m in run.marks if m.name == "closed"]


@pytest.mark.parametrize("limit", [9_000, 40_000])
def test_a_full_disk_ends_the_record_and_not_the_training(tmp_path: Path, limit: int) -> None:
    child = start(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        whole = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with whyspike.watch(model, optimizer, path=path, store_batches=False) as rec:
                for k, loss in enumerate(epochs(rec)):
                    whole.append(loss)
                    if k % 100 == 0:
                        rec.flush()
                    if k == 6000:
                        break
                print(rec.recording)
        print(len(whole))
        print(len(caught))
        for w in caught:
            print(w.message)
        open("/dev/stdout", "w").write("\\n".join(map(repr, whole)))
        """,
        str(tmp_path / "run"),
        str(limit),
    )
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    recording, trained, warned, sentence, *losses = out.splitlines()
    assert (recording, trained, warned) == ("False", "6001", "1")
    assert "could not write" in sentence
    assert "free some space" in sentence
    run = read(tmp_path / "run")
    assert 0 < len(run) < 6001
    assert [repr(v) for v in run.loss.tolist()] == losses[: len(run)]
    for path in run.capsules:
        assert load(path).tensors
    assert not list((tmp_path / "run").rglob("*.tmp"))


# --------------------------------------------------------------------------- in this process


def setup() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(data, batch_size=4, shuffle=True)


def one_epoch(rec: whyspike.Recorder, model: nn.Module, optimizer: Any, loader: Any) -> None:
    for x, y in rec.batches(loader):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        rec.step(loss)


def test_an_exception_in_the_training_is_marked(tmp_path: Path) -> None:
    model, optimizer, loader = setup()

    def fails() -> None:
        with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
            one_epoch(rec, model, optimizer, loader)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    run = read(tmp_path / "run")
    assert len(run) == 16
    assert [m.data for m in run.marks if m.name == "closed"] == [{"reason": "ZeroDivisionError"}]


def test_an_end_without_exception_is_marked_too(tmp_path: Path) -> None:
    model, optimizer, loader = setup()
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        one_epoch(rec, model, optimizer, loader)
    marks = read(tmp_path / "run").marks
    assert [m.data for m in marks if m.name == "closed"] == [{"reason": "end"}]


@pytest.mark.parametrize("max_bytes", [20_000, 60_000, 150_000])
def test_the_folder_does_not_outgrow_its_cap(tmp_path: Path, max_bytes: int) -> None:
    model, optimizer, loader = setup()
    largest = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with whyspike.watch(model, optimizer, path=tmp_path / "run", max_bytes=max_bytes) as rec:
            for _ in range(200):
                one_epoch(rec, model, optimizer, loader)
                rec.flush()
                largest = max(largest, sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file()))
    largest = max(largest, sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file()))
    assert len(caught) <= 1
    assert len(read(tmp_path / "run")) >= 16
    assert largest <= max_bytes


def test_at_the_cap_the_record_ends_and_the_training_goes_on(tmp_path: Path) -> None:
    model, optimizer, loader = setup()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with whyspike.watch(model, optimizer, path=tmp_path / "run", max_bytes=30_000, store_batches=False) as rec:
            for _ in range(200):
                one_epoch(rec, model, optimizer, loader)
                rec.flush()
    assert len(caught) == 1
    assert "max_bytes=30,000" in str(caught[0].message)
    assert "the training goes on" in str(caught[0].message)
    assert not rec.recording
    assert (tmp_path / "run" / "record.frames").stat().st_size < 35_000
    assert 100 < len(read(tmp_path / "run")) < 3200


def test_a_run_can_be_read_while_it_grows(tmp_path: Path) -> None:
    model, optimizer, loader = setup()
    lengths = []
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        for _ in range(5):
            one_epoch(rec, model, optimizer, loader)
            rec.flush()
            assert rec.path is not None
            lengths.append(len(read(rec.path)))
    assert lengths == [16, 32, 48, 64, 80]


def test_two_runs_in_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now = datetime(2024, 2, 29, 12, 0, 0)
    made = [RunFolder.create(None, "net", 1 << 20, now=now) for _ in range(3)]
    for folder in made:
        folder.close()
    assert [m.path.name for m in made] == ["net-20240229-120000", "net-20240229-120000-2", "net-20240229-120000-3"]

    model, optimizer, loader = setup()
    for _ in range(2):  # the same path twice: the first run is never written into
        with whyspike.watch(model, optimizer, path="mine") as rec:
            one_epoch(rec, model, optimizer, loader)
    assert rec.path is not None
    assert rec.path.name == "mine-2"
    assert len(read(Path("mine"))) == len(read(Path("mine-2"))) == 16


def test_the_log_says_what_an_error_of_its_own_was(tmp_path: Path) -> None:
    model, optimizer, loader = setup()
    with whyspike.watch(model, optimizer, path=tmp_path / "run") as rec:
        one_epoch(rec, model, optimizer, loader)
        rec.flush()
        optimizer.param_groups.clear()  # nothing that a user does, but an error inside the recorder
        batches = rec.batches([torch.zeros(4, 4)])
        with pytest.warns(RuntimeWarning, match="the training goes on") as caught:
            next(iter(batches))
        assert len(caught) == 1
        assert not rec.recording
    assert "Traceback" in (tmp_path / "run" / "whyspike.log").read_text()
    assert len(read(tmp_path / "run")) >= 16


def test_a_run_that_never_stepped_leaves_no_folder(tmp_path: Path) -> None:
    model, optimizer, _ = setup()
    start_time = time.monotonic()
    with whyspike.watch(model, optimizer, path=tmp_path / "run"):
        pass
    assert time.monotonic() - start_time < 5
    assert not (tmp_path / "run").exists()
