"""The scoreboard: it drops nothing, goes on where it stopped, and counts what was declared before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest


@pytest.fixture
def board(root, tmp_path, monkeypatch):
    """The modules of the benchmark, with a cache of their own."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import _scored
    import _scorepage
    import scoreboard

    monkeypatch.setattr(_scored, "CACHE", tmp_path)
    return {"scored": _scored, "page": _scorepage, "run": scoreboard}


def result(board, task, **said):
    whole = {"status": "healthy", "cause": None, "harm": None, "sentence": "Nothing is wrong.", "steps": 500}
    return {"events": [], "verdicts": [], "cures": [], "seconds": 1.0, **whole, **said, "task": asdict(task)}


def shown(board, results, planned=None):
    page = board["page"]
    return page.page(
        page.Board(
            commit="0" * 40,
            dirty=False,
            date="2026-01-01",
            command="./dev bench scoreboard",
            planned=len(results) if planned is None else planned,
            results=tuple(results),
        )
    )


def case_task(board, name="sum-reduction", arm="sick", replicate=0):
    return board["scored"].Task(kind="case", name=name, arm=arm, replicate=replicate, seed=7, vary={"lr": 1.1})


def test_seeds_and_factors_follow_from_the_commit_alone(board):
    plans = [board["run"].plan(commit) for commit in ("a" * 40, "a" * 40, "b" * 40)]
    assert plans[0] == plans[1]
    assert {t.seed for t in plans[0]}.isdisjoint({t.seed for t in plans[2]} - {t.seed for t in plans[0]})
    assert plans[0] != plans[2]
    sick = [t for t in plans[0] if t.arm == "sick"]
    assert len(sick) >= board["run"].RUNS
    assert all(0.8 <= f <= 1.25 for t in sick for f in t.vary.values())
    twins = {(t.name, t.replicate): t for t in plans[0] if t.arm == "twin"}
    assert all(twins[t.name, t.replicate].vary == t.vary for t in sick)
    assert sum(t.kind == "healthy" for t in plans[0]) == 200


def test_a_key_changes_with_the_task_and_with_nothing_else(board):
    one, same, other = case_task(board), case_task(board), case_task(board, replicate=1)
    assert one.key == same.key
    assert one.key != other.key
    assert one.key != case_task(board, name="small-last-batch").key


def test_what_a_run_raises_is_its_result_and_counts_as_wrong(board, monkeypatch):
    scored, task = board["scored"], case_task(board)

    def breaks(task):
        raise ValueError("no such thing")

    monkeypatch.setitem(scored.SCORERS, "case", breaks)
    scored.work(task)
    found = task.result()
    assert found["error"].startswith("ValueError: no such thing (test_scoreboard.py:")
    text = shown(board, [found])
    assert "0 of 1" in text
    assert "sum-reduction sick, seed 7, lr x1.10: ValueError: no such thing" in text


def test_a_process_that_died_is_tried_again_and_then_counted(board):
    scored, task = board["scored"], case_task(board)
    task.path.with_suffix(".starts").write_text(str(scored.STARTS))
    scored.work(task)
    assert "ended 3 times" in task.result()["error"]


def test_a_run_takes_up_what_is_there(board, monkeypatch):
    scored, task = board["scored"], case_task(board)
    task.path.write_text(json.dumps(result(board, task)))
    monkeypatch.setitem(scored.SCORERS, "case", lambda task: pytest.fail("it was run again"))
    board["run"].run([task], jobs=1)
    assert task.result()["status"] == "healthy"


def test_too_long_is_stopped(board, monkeypatch):
    scored, task = board["scored"], case_task(board)

    def endless(task):
        try:
            while True:
                pass
        except Exception:  # as a library that swallows errors would
            return {}

    monkeypatch.setattr(scored, "CPU_S", 0.2)
    monkeypatch.setitem(scored.SCORERS, "case", endless)
    scored.work(task)
    assert "more than" in task.result()["error"]


def test_the_matrix_knows_what_was_declared(board):
    both = ("sum-reduction", "small-last-batch")
    confirmed = [{"cause": c, "outcome": "confirmed", "harm": "damaging"} for c in both]
    results = [
        result(board, case_task(board), status="explained", cause="sum-reduction", verdicts=confirmed),
        result(board, case_task(board, replicate=1), status="explained", cause="small-last-batch", sentence="No."),
        result(board, case_task(board, "double-averaged-loss"), status="explained", cause="momentum-carry-over"),
        result(board, case_task(board, "batch-size-noise")),  # silence is right in a telling run
        result(board, case_task(board, arm="twin")),
    ]
    text = shown(board, results, planned=9)
    assert "Not complete: 4 of 9 runs" in text
    assert "2 of 4 (50.0%" in text
    assert "1 more with another cause that was declared as at work" in text
    assert "small-last-batch confirmed without being declared" in text
    assert "| Confirmed without being declared | 1 of 2 confirmations |" in text
    assert "*1*" in text


def test_events_of_healthy_trainings_and_found_faults_stand_side_by_side(board):
    Task = board["scored"].Task
    event = {"kind": "spike", "step": 3, "last_step": 3, "reported": 2.0, "state": None}
    healthy = [
        result(board, Task(kind="healthy", name="training", replicate=k, seed=1), events=[event] * k) for k in (0, 1)
    ]
    hits = {"1": True, "10": True, "0": False}
    faults = [
        {"kind": "loss-x8", "step": 60, "visible": True, "hits": hits},
        {"kind": "loss-x8", "step": 90, "visible": False, "hits": dict.fromkeys(hits, False)},
    ]
    fault = result(board, Task(kind="fault", name="sgd-32", replicate=0, seed=1), faults=faults)
    text = shown(board, [*healthy, fault])
    assert "100.0 per 100,000 steps (1 in 1,000; at most 474.4 with 95 % confidence): 1 spike." in text
    assert "| Visible injected faults found | 1 of 1" in text
    assert "| never | 0 of 1" in text


@pytest.mark.slow
def test_the_command_scores_a_case(root):
    made = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "scoreboard.py"), "--quick", "--only", "sum-reduction"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert "| 1 sum-reduction | **1** |" in made.stdout


def test_the_section_of_published_logs_is_kept_where_the_logs_are_not(board, monkeypatch):
    import _knownlogs

    monkeypatch.delenv("WHYSPIKE_REAL_LOGS", raising=False)
    stood = _knownlogs.standing("# x\n\n## Logs of trainings that nobody here ran\n\nOf 3 of 3.\n\n## How\n")
    assert stood == "## Logs of trainings that nobody here ran\n\nOf 3 of 3."
    assert _knownlogs.standing("# x\n\n## How\n") == ""
    assert _knownlogs.section() == _knownlogs.standing(_knownlogs.PAGE.read_text(encoding="utf-8"))
