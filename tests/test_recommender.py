"""The recommender: its sessions, a file of one's own, and what it is diagnosed as."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whyspike.cases import _sessions as s
from whyspike.cases import gru_recommender as gru
from whyspike.rerun import train

HERE = Path(__file__).resolve().parents[1]


def test_sessions_are_skewed_clustered_and_the_same_for_a_seed() -> None:
    found = s.sessions(20_000, 500, 3)
    assert found == s.sessions(20_000, 500, 3)
    assert found != s.sessions(20_000, 500, 4)
    items = np.concatenate([np.array(x) for x in found])
    counts = np.sort(np.bincount(items, minlength=500))[::-1]
    assert counts[:50].sum() > 0.4 * counts.sum()  # Zipf: a tenth of the items has most of the visits
    after: dict[int, list[int]] = {}
    for session in found:
        for a, b in itertools.pairwise(session):
            after.setdefault(a, []).append(b)
    most = int(np.bincount(items).argmax())
    assert np.bincount(after[most]).max() > 0.1 * len(after[most])  # a usual successor


@given(st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=25), min_size=1, max_size=6))
def test_a_window_holds_the_ten_items_before_its_target(found: list[list[int]]) -> None:
    made = s.windows(found, 9)
    k = 0
    for session in found:
        for at in range(1, len(session)):
            before = session[max(0, at - 10) : at]
            assert made.items[k].tolist() == [0] * (10 - len(before)) + [i + 1 for i in before]
            assert made.target[k] == session[at]
            k += 1
    assert k == len(made)


@pytest.mark.parametrize(
    "text",
    [
        "user,item,time\nu1,a,1\nu2,b,2\nu1,c,3.5\n",
        "u1\ta\t1\nu2\tb\t2\nu1\tc\t3.5\n",
        "timestamp;rating;item_id;user_id\n1;5;a;u1\n2;4;b;u2\n3.5;3;c;u1\n",
    ],
    ids=["csv", "tsv", "other columns"],
)
def test_a_file_is_read_as_users_items_and_times(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(text, encoding="utf-8")
    assert s.read_interactions(path) == [("u1", "a", 1.0), ("u2", "b", 2.0), ("u1", "c", 3.5)]


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("user,item,time\nu1,a,1\nu1,b,noon\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3 .*u1,b,noon.*the time a number"):
        s.read_interactions(path)


def test_sessions_follow_the_time_not_the_lines() -> None:
    found, names = s.sessions_of([("u", "c", 9.0), ("v", "a", 2.0), ("u", "a", 1.0), ("u", "b", 4.0)])
    assert [[names[i] for i in x] for x in found] == [["a", "b", "c"], ["a"]]


def test_written_and_read_again_the_case_is_the_same(tmp_path: Path) -> None:
    """The sessions of the case, through a file, give the same windows, but for the names of the items."""
    found = s.sessions(2000, 100, 0)
    again, names = s.sessions_of(s.read_interactions(s.write_interactions(tmp_path / "own.csv", found)))
    assert [[int(names[i]) for i in x] for x in again] == [list(x) for x in found]
    made = gru.training_on(s.read_interactions(tmp_path / "own.csv"), epochs=1)
    data = made.loader.dataset  # type: ignore[attr-defined]
    direct = s.windows([[names.index(str(i)) for i in x] for x in found[: len(found) * 4 // 5]], len(names))
    assert torch.equal(data.items, torch.as_tensor(direct.items))
    assert torch.equal(data.target, torch.as_tensor(direct.target))
    assert np.isfinite(train(made).loss).all()


def test_the_example_trains_on_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.chdir(tmp_path)
    made = runpy.run_path(str(HERE / "examples" / "own_sessions.py"))["training"](epochs=1)
    assert (tmp_path / "sessions.csv").is_file()
    assert len(train(made).loss) == -(-len(made.loader.dataset) // 64)


def test_four_evaluations_an_epoch_and_means_over_the_quarter(tmp_path: Path) -> None:
    from whyspike.readers import read
    from whyspike.record import watch
    from whyspike.rerun import train_recorded

    made = gru.training(0, n=640, epochs=3, hidden=8, n_items=100, rest=5)
    recorder = watch(made.model, made.optimizer, loss_fn=made.loss_fn, path=tmp_path / "run")
    with recorder as rec:
        train_recorded(made, rec)
    run = read(tmp_path / "run")
    assert run.steps_per_epoch == 11
    means = run.signals["train_loss"]
    assert means.step.tolist() == [11 * e + k for e in range(3) for k in (2, 5, 8, 10)]
    assert set(run.signals) >= {"train_hr10", "val_loss", "val_hr10"}
    assert run.n_samples is not None
    begin = 0
    for step, value in zip(means.step.tolist(), means.value.tolist(), strict=True):
        rows = slice(begin, step + 1)
        assert value == pytest.approx(np.average(run.loss[rows], weights=run.n_samples[rows]), rel=1e-6)
        begin = step + 1


def test_vary_is_honoured() -> None:
    from whyspike.case import Vary

    made = gru.sick(0, Vary(lr=0.8, n=1.25, batch_size=0.8, width=1.25))
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.008)
    assert made.loader.batch_size == 51  # type: ignore[attr-defined]
    assert len(made.loader.dataset) % 51 == 0  # type: ignore[attr-defined]
    assert made.model.gru.hidden_size == 60  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_sawtooth_is_confirmed_and_harmless_and_the_twin_healthy(seed: int) -> None:
    from whyspike.case import find_case
    from whyspike.testing import check_case

    made = check_case(find_case("gru-recommender"), seed)
    first = made.sick.verdicts[0]
    assert (first.cause, first.outcome, first.harm) == ("epochal-sawtooth", "confirmed", "none")
    assert not [e for e in made.healthy.events if e.is_wave]
