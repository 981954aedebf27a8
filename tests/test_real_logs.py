"""Logs of trainings that nobody here ran: what is known of them is said, and nothing else.

They are not part of the project; WHYSPIKE_REAL_LOGS names the folder that holds them. No threshold was chosen on them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from whyspike.errors import UnreadableRun
from whyspike.pipeline import diagnose
from whyspike.types import Diagnosis

FOLDER = os.environ.get("WHYSPIKE_REAL_LOGS")
pytestmark = pytest.mark.skipif(
    FOLDER is None or not Path(FOLDER).is_dir(), reason="WHYSPIKE_REAL_LOGS does not name a folder of real logs"
)


def of(name: str, **given: float) -> Diagnosis:
    path = Path(FOLDER or "") / name
    if not path.exists():
        pytest.skip(f"{name} is not there")
    return diagnose(path, **given)  # type: ignore[arg-type]


def kinds(made: Diagnosis) -> list[str]:
    return [e.kind for e in made.events]


def notes(made: Diagnosis) -> set[str]:
    return {n.id for n in made.run.notes}


def test_a_fine_tuned_alpaca_remembers_its_samples() -> None:
    made = of("yc1999-alpaca.trainer_state.json")
    assert (made.answer.status, made.answer.cause, made.answer.harm) == ("healthy", "memorization-step", "none")
    assert kinds(made) == ["level-shift", "level-shift"]
    # 406.3 updates in an epoch: the updates 407 and 813 hold samples of two epochs
    assert [e.step for e in made.events] == [408, 814]
    assert made.record is not None
    assert made.record.facts["epoch_length"] == pytest.approx(406.3125)
    assert not notes(made)


def test_a_lora_with_batches_sorted_by_length() -> None:
    made = of("sherryxzhao-lora.trainer_state.json")
    assert (made.answer.status, made.answer.cause, made.answer.harm) == ("healthy", "length-grouped", "none")
    assert [(e.kind, e.period) for e in made.events] == [("periodic", 50)]
    assert notes(made) == {"averaged-values"}


@pytest.mark.parametrize("given", [{}, {"steps_per_epoch": 19073}], ids=["", "with the author's own belief"])
def test_a_pass_over_data_in_fixed_order_is_measured_to_the_step(given: dict[str, float]) -> None:
    start = time.process_time()
    made = of("agndm-nanogpt-2.5-epochs.log.txt", **given)
    assert time.process_time() - start < 20  # a few seconds, whatever else the machine does
    assert made.answer.cause == "fixed-order"
    assert [(e.kind, e.period) for e in made.events] == [("periodic", 18_722)]
    assert "18,722 steps long" in made.answer.sentence
    assert len(made.verdicts) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coralreef-whisper.trainer_state.json", {"averaged-values"}),
        ("agndm-nanogpt-shuffled.log.txt", set()),
        ("torchtitan-llama3.losses.txt", set()),
        ("megatron-golden.values.json", set()),
        ("trackio-wandb-export.csv", {"sampled-values"}),
        ("driemann-ml-aos.metrics.csv", set()),
    ],
)
def test_clean_logs_are_healthy(name: str, expected: set[str]) -> None:
    made = of(name)
    assert (made.answer.status, made.answer.cause, kinds(made)) == ("healthy", None, [])
    assert notes(made) == expected


def test_one_point_of_a_pinn_stands_out_and_nothing_is_claimed() -> None:
    made = of("macro1027-pinn-v18.metrics.csv")
    assert [(e.kind, e.step, e.last_step) for e in made.events] == [("spike", 16_149, 16_149)]
    assert made.events[0].reported == pytest.approx(2500, rel=0.1)
    assert (made.answer.status, made.answer.cause) == ("unexplained", None)
    assert made.run.steps_per_epoch == 63


def test_one_value_for_each_epoch_says_nothing_about_what_is_inside() -> None:
    made = of("brats-keras.csvlogger.csv")
    assert (made.answer.status, made.answer.cause) == ("cannot-say", None)
    assert notes(made) == {"epoch-only", "lr-steps"}
    assert "inside an epoch cannot be told" in made.answer.sentence


def test_a_resumed_detectron2_run_is_cut_back() -> None:
    made = of("bupt-detectron2.log.txt")
    assert made.answer.status == "healthy"
    assert notes(made) == {"resume-overlap", "averaged-values", "lr-steps"}
    assert any("0.02 to 0.002 at step 60,019" in n.text for n in made.run.notes)
    assert any("step 72,559 is followed by step 70,019" in n.text for n in made.run.notes)
    assert made.record is not None
    assert made.record.step.tolist() == list(range(19, 90_000, 20))


def test_a_killed_olmo_run_is_healthy_and_ends_in_a_traceback() -> None:
    made = of("antoniolopardo-olmo.training.log")
    assert (made.answer.status, notes(made)) == ("healthy", {"truncated-tail"})
    assert any("got signal: 15" in n.text for n in made.run.notes)


def test_a_cyclegan_log_holds_two_runs() -> None:
    made = of("vv-cyclegan.loss_log.txt")
    assert made.run.steps == 2904
    assert "appended-runs" in notes(made)
    assert (made.answer.status, made.events) == ("healthy", ())
    assert "no measure of progress" in made.answer.sentence


def test_duplicate_steps_of_tensorboard_are_read_without_loss() -> None:
    folder = Path(FOLDER or "") / "janosh-duplicate-steps"
    if not folder.exists():
        pytest.skip("janosh-duplicate-steps is not there")
    with pytest.raises(UnreadableRun, match="name the column with --loss NAME"):
        diagnose(folder)
    made = diagnose(folder, loss="dup_steps/foo")
    assert made.record is not None
    assert made.record.step.tolist() == list(range(200))
    assert notes(made) == {"resume-overlap"}


def test_the_scoreboard_finds_all_that_is_known_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import _knownlogs

    for known in _knownlogs.KNOWN:
        if (Path(FOLDER or "") / known.log).exists():
            missed, false = _knownlogs.judged(known, Path(FOLDER or ""))[1:]
            assert missed == [], known.log
            assert [f for f in false if not (known.also and f.startswith("spike"))] == [], known.log
