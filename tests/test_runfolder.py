"""The run folder: whatever is cut off or damaged, what came before it is read, and said to be not the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike.errors import UnreadableRun
from whyspike.readers.runfolder import read, sniff
from whyspike.runfolder import (
    RunFolder,
    append_trials,
    frames,
    pack,
    read_diagnosis,
    read_trials,
    smallest_unsigned,
    unpack,
    write_diagnosis,
)
from whyspike.types import Answer, Diagnosis, Event, Evidence, Note, RunInfo, Trial, Verdict


def steps_frame(first: int, losses: list[float], **columns: np.ndarray) -> dict[str, object]:
    found = {"loss": pack(np.array(losses)), **{k: pack(v) for k, v in columns.items()}}
    return {"kind": "steps", "first": first, "columns": found}


def write(path: Path, *content: dict[str, object], **header: object) -> Path:
    folder = RunFolder.create(path, "net", 1 << 20)
    folder.write_header({"name": "net", **header})
    for frame in content:
        folder.append(frame)
    folder.close()
    return folder.path


def whole_frames(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    found, source = [], frames(path)
    while True:
        try:
            found.append(next(source))
        except StopIteration as end:
            return found, end.value


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[int]]:
    """A run of three frames of steps and one signal, with the length of the file after each frame."""
    folder = RunFolder.create(tmp_path / "run", "net", 1 << 20)
    folder.write_header({"name": "net"})
    ends = []
    for first in (0, 3, 6):
        folder.append(steps_frame(first, [first + 1.0, first + 2.0, first + 3.0]))
        ends.append(folder.written)
    folder.append({"kind": "signal", "name": "a", "step": pack(np.array([4], np.uint32)), "value": pack(np.ones(1))})
    ends.append(folder.written)
    folder.close()
    return folder.path, ends


def test_cut_off_at_every_byte_the_frames_before_are_read(run: tuple[Path, list[int]]) -> None:
    path, ends = run
    file = path / "record.frames"
    data = file.read_bytes()
    assert len(data) == ends[-1]
    for length in range(len(data) + 1):
        file.write_bytes(data[:length])
        found, said = whole_frames(file)
        whole = sum(end <= length for end in ends)
        assert len(found) == whole
        assert [f.get("first") for f in found] == [0, 3, 6, None][:whole]
        assert (said is None) == (length in (0, *ends))
        if whole:
            got = read(path)
            assert got.loss.tolist() == [float(k) for k in range(1, 3 * min(whole, 3) + 1)]
            assert [n.id for n in got.notes].count("truncated-tail") == (said is not None)
        else:
            with pytest.raises(UnreadableRun, match=r"no training step; call rec\.step\(loss\)"):
                read(path)


def test_every_damaged_byte_is_noticed(run: tuple[Path, list[int]]) -> None:
    path, ends = run
    file = path / "record.frames"
    data = bytearray(file.read_bytes())
    for at in range(len(data)):
        data[at] ^= 0xFF
        file.write_bytes(data)
        found, said = whole_frames(file)
        assert said is not None
        assert len(found) == sum(end <= at for end in ends)
        data[at] ^= 0xFF
    file.write_bytes(bytes(data[: ends[1]]) + b"\x00" + bytes(data[ends[1] + 1 :]))
    got = read(path)
    assert len(got) == 6
    note = next(n for n in got.notes if n.id == "truncated-tail")
    assert "damaged" in note.text
    assert "what was recorded before it is here" in note.text


def test_a_frame_that_is_not_whole_counts_as_a_full_disk(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "net", 1 << 20)
    folder.write_header({})
    folder.append(steps_frame(0, [1.0]))
    folder.close()
    with pytest.raises((OSError, ValueError)):
        folder.append(steps_frame(1, [1.0]))
    assert len(read(tmp_path / "run")) == 1


# --------------------------------------------------------------------------- what is no run


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRun, match=r"none does not exist; give the folder.*rec\.path"):
        read(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UnreadableRun, match=r"is an empty folder; a recorded run is a folder with run\.json"):
        read(empty)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnreadableRun, match=r"is a file; a recorded run is a folder"):
        read(tmp_path / "file")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "events.out").write_text("x")
    with pytest.raises(UnreadableRun, match=r"there is no run\.json and no record\.frames in it; give the folder"):
        read(foreign)
    assert not any(map(sniff, (tmp_path / "none", empty, tmp_path / "file", foreign)))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, r"there is no run\.json in it"),
        ("", r"run\.json is damaged"),
        ('{"format": "whysp', r"run\.json is damaged"),
        ("[]", "was not written by whyspike"),
        ('{"format": "other"}', "was not written by whyspike"),
        ('{"format": "whyspike-run", "version": 99}', "another format version than 1; read it with the whyspike"),
    ],
)
def test_a_header_that_is_none_is_said(header: str | None, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "run", steps_frame(0, [1.0]))
    (path / "run.json").unlink()
    if header is not None:
        (path / "run.json").write_text(header)
    with pytest.raises(UnreadableRun, match=said):
        read(path)
    assert sniff(path)  # it is ours, and says what is wrong with it


def test_a_header_without_frames_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / "record.frames").unlink()
    with pytest.raises(UnreadableRun, match=r"there is no record\.frames in it"):
        read(path)
    assert sniff(path)


# --------------------------------------------------------------------------- what is in a run


def test_columns_that_a_frame_lacks_are_not_known(tmp_path: Path) -> None:
    counted = {"n_samples": np.array([8, 8], np.uint8), "lr": np.array([0.1, 0.2])}
    path = write(tmp_path / "all", steps_frame(0, [1.0, math.nan], **counted), steps_frame(2, [2.0, 3.0], **counted))
    got = read(path)
    assert got.n_samples is not None
    assert got.n_samples.tolist() == [8] * 4
    assert got.lr is not None
    assert got.lr.tolist() == [0.1, 0.2] * 2
    assert got.batch_size == 8
    assert math.isnan(got.loss[1])
    assert [n.id for n in got.notes] == ["too-short"]
    part = read(write(tmp_path / "part", steps_frame(0, [1.0, 2.0], **counted), steps_frame(2, [2.0])))
    assert part.n_samples is None
    assert part.lr is None
    assert part.step.tolist() == [0, 1, 2]


def test_a_signal_that_was_logged_twice_counts_once(tmp_path: Path) -> None:
    def signal(steps: list[int], values: list[float]) -> dict[str, object]:
        return {
            "kind": "signal", "name": "a", "step": pack(np.array(steps, np.uint32)), "value": pack(np.array(values)),
        }  # fmt: skip

    path = write(
        tmp_path / "run", steps_frame(0, [1.0] * 6), signal([1, 4], [1.0, 2.0]), signal([4, 5, 2], [3.0, 4, 5])
    )
    found = read(path).signals["a"]
    assert found.step.tolist() == [1, 2, 4, 5]
    assert found.value.tolist() == [1.0, 5.0, 3.0, 4.0]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_column_is_stored_exactly_and_small(values: list[int]) -> None:
    dtype = smallest_unsigned(max(values))
    assert unpack(pack(np.array(values, dtype=dtype))).tolist() == values
    assert max(values) < 2 ** (8 * dtype.itemsize)
    assert dtype.itemsize == 1 or max(values) >= 2 ** (4 * dtype.itemsize)


def test_an_existing_folder_is_never_written_into(tmp_path: Path) -> None:
    mine = tmp_path / "run"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    path = write(mine, steps_frame(0, [1.0]))
    assert path == tmp_path / "run-2"
    assert [f.name for f in mine.iterdir()] == ["notes.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert write(empty, steps_frame(0, [1.0])) == empty


def test_room_counts_frames_and_capsules(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "net", 10_000)
    assert folder.room() == 10_000
    folder.append(steps_frame(0, [1.0]))
    size = (folder.path / "record.frames").stat().st_size
    assert folder.room() == 10_000 - size
    for step in (1_000_000, 5):
        folder.capsule_path(step).parent.mkdir(exist_ok=True)
        folder.capsule_path(step).write_bytes(b"x" * 1000)
    assert folder.room() == 8_000 - size
    assert folder.capsules() == [folder.capsule_path(5), folder.capsule_path(1_000_000)]
    folder.close()


# --------------------------------------------------------------------------- results of experiments


def trial(pair: int, **other: Any) -> Trial:
    values: dict[str, Any] = {
        "cause": "momentum-carry-over", "arm": "baseline", "words": "as it was", "event": "e1", "pair": pair,
        "backend": "snapshot", "first_step": 10, "event_step": 12, "reported": (1.0, 0.1 + 0.2, math.nan, math.inf),
        "state": (1e-300, 2.0, 3.0, 4.0), "reported_reference": 1.0, "state_reference": 2.0, "excess": 0.5,
        "reproduced": True, "noise": 0.0,
    }  # fmt: skip
    return Trial(**{**values, **other})


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == ()
    append_trials(tmp_path, [trial(0), trial(1, arm="placebo", reproduced=None, noise=None)])
    append_trials(tmp_path, [trial(2, excess=-math.inf)])
    found = read_trials(tmp_path)
    assert [repr(t) for t in found] == [
        repr(t) for t in (trial(0), trial(1, arm="placebo", reproduced=None, noise=None), trial(2, excess=-math.inf))
    ]


def test_a_trial_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    append_trials(tmp_path, [trial(0), trial(1)])
    file = tmp_path / "trials.jsonl"
    data = file.read_bytes()
    first = data.index(b"\n") + 1
    for length in (0, 1, first - 1, first, first + 1, len(data) - 2, len(data)):
        file.write_bytes(data[:length])
        whole = (length >= first - 1) + (length >= len(data) - 1)
        assert [t.pair for t in read_trials(tmp_path)] == [0, 1][:whole]


def test_trials_appended_after_a_cut_off_line_are_kept(tmp_path: Path) -> None:
    append_trials(tmp_path, [trial(0), trial(1)])
    file = tmp_path / "trials.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # killed while writing
    append_trials(tmp_path, [trial(2), trial(3)])
    assert [t.pair for t in read_trials(tmp_path)] == [0, 2, 3]


def diagnosis(steps: int) -> Diagnosis:
    evidence = Evidence(statement="the loss rises", observed="2.0", expected="1.0", p_value=0.01)
    return Diagnosis(
        run=RunInfo(source="run", reader="whyspike", steps=steps, notes=(Note(id="a", text="b"),)),
        answer=Answer(status="explained", cause="small-last-batch", harm="cosmetic", sentence="It is the last batch."),
        events=(Event(id="e1", kind="spike", step=10, last_step=12, reported=1.5),),
        verdicts=(
            Verdict(
                cause="small-last-batch", outcome="confirmed", harm="cosmetic", events=("e1",), evidence=(evidence,)
            ),
        ),
    )


def test_the_last_diagnosis_comes_back_until_the_record_grows(tmp_path: Path) -> None:
    assert read_diagnosis(tmp_path, steps=100) is None
    write_diagnosis(tmp_path, diagnosis(100))
    assert read_diagnosis(tmp_path, steps=100) is None  # without trials it was no experiment
    append_trials(tmp_path, [trial(0)])
    assert read_diagnosis(tmp_path, steps=100) == diagnosis(100)
    assert read_diagnosis(tmp_path, steps=101) is None
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damaged", ["", "{", "[]", "null", '{"schema_version": 1}'])
def test_a_damaged_diagnosis_is_none(damaged: str, tmp_path: Path) -> None:
    append_trials(tmp_path, [trial(0)])
    (tmp_path / "diagnosis.json").write_text(damaged)
    assert read_diagnosis(tmp_path, steps=100) is None
