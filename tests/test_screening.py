"""Where replays are dear: what decides comes first, each replay says what is asked of it and ends, and time is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recorded
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike import allowance, pipeline, replay, replays
from whyspike.allowance import HEAVY_S, Allowance
from whyspike.cause import catalogue
from whyspike.experiment import Experiment
from whyspike.interventions import ScaleLr, SkipBatch
from whyspike.judge import ALPHA
from whyspike.profile import MATTERS, Trials, enough
from whyspike.replay import HORIZON, Replayed
from whyspike.replays import Pair, reach
from whyspike.reproduction import of_replays
from whyspike.screening import LOOK, Screening, pairs_needed, spread
from whyspike.seams import BASELINE
from whyspike.suspect import suspect
from whyspike.training import Training


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def with_outliers() -> Training:
    """A regression of 1,600 samples in batches of 16; the targets of two of them are far from all others."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1600, 8, generator=g)
    y = x @ torch.randn(8, 1, generator=g) + 0.3 * torch.randn(1600, 1, generator=g)
    y[[100, 500]] *= 100
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        loss_fn=loss_fn,
        loader=loader,
        epochs=7,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = recorded(with_outliers(), tmp_path_factory.mktemp("screening") / "run")
    yield found
    torch.set_num_threads(before)


def thrifty(made: Experiment, training_s: float = HEAVY_S) -> Experiment:
    """The experiment as of a training that took so long."""
    return Experiment(made.subject, made.seen, allowance=Allowance(training_s, len(made.seen.events)))


class SlowClock:
    """The processor time of this process, with so many seconds for every step of a replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_step: float) -> None:
        self.now = 0.0
        real = replay.training_step

        def step(*a: object, **k: object) -> object:
            self.now += per_step
            return real(*a, **k)  # type: ignore[arg-type]

        monkeypatch.setattr(replay, "training_step", step)
        for module in (allowance, replay, replays):
            monkeypatch.setattr(module, "process_time", lambda: self.now)


# --------------------------------------------------------------------------- replays that are cut short


def test_a_training_is_dear_from_a_minute_on() -> None:
    assert not Allowance(HEAVY_S - 1).thrifty
    assert Allowance(HEAVY_S).thrifty
    assert not Allowance(math.inf).thrifty


def test_a_replay_that_ends_early_says_the_same_of_its_steps(made: Experiment) -> None:
    pair = thrifty(made).pairs((made.seen.events[0].id,))[0]
    with made.subject.kept():
        whole = made.subject.replay(pair.window)
        cut = made.subject.replay(pair.window, horizon=5)
        late = made.subject.replay(pair.window, probed_from=pair.window.event_step, enough=lambda state: True)
    assert whole.until(5) == cut
    assert whole.until(100) == whole
    assert len(late.state) == pair.window.event_step - late.first_step + 1  # it ended at the first probe
    assert late.state[-1] == whole.state[len(late.state) - 1]
    assert all(map(math.isnan, late.state[:-1]))


def test_a_replay_that_begins_where_its_change_does_is_bitwise_the_whole_one(made: Experiment) -> None:
    quick = thrifty(made)
    pair = quick.replays.ready(quick.pairs((made.seen.events[-1].id,))[0])
    with made.subject.kept():
        quick.replay(pair, BASELINE)
        assert pair.window.control_step is not None
        assert made.subject.held(pair.window, pair.window.control_step) is not None
        for change in (SkipBatch(), SkipBatch("the batch before skipped", "control")):
            whole = made.subject.replay(pair.window, change)
            assert_same(quick.replay(pair, change), whole)


def test_a_part_of_an_unchanged_replay_is_bitwise_a_replay_of_that_part(made: Experiment) -> None:
    quick = thrifty(made)
    pair = quick.pairs((made.seen.events[-1].id,))[0]
    with made.subject.kept():
        quick.replay(pair, BASELINE)  # begins earlier, as long as it is not known where the event begins
        quick.replays.lead = 4
        n = quick.replays.n
        part = quick.replay(pair, BASELINE)
        assert quick.replays.n == n
        assert_same(part, made.subject.replay(quick.replays.ready(pair).window))


def assert_same(a: Replayed, b: Replayed) -> None:
    assert (a.first_step, a.event_step, a.state_before) == (b.first_step, b.event_step, b.state_before)
    for one, other in ((a.reported, b.reported), (a.state, b.state), (a.recorded, b.recorded)):
        assert np.array_equal(one, other, equal_nan=True)


def test_a_bound_is_one_and_what_passes_it_is_exact(made: Experiment) -> None:
    quick = thrifty(made)
    removes = []
    with made.subject.kept():
        quick.measure_states()
        for event in [e for e in quick.seen.events if e.kind == "spike" and (e.state or 0) > 1.1][:3]:
            trials = Trials(quick, quick.pairs((event.id,))[0])
            for offset in [k for k in (0, -1, 1, -3, -8) if k in trials.steps]:
                skip = SkipBatch(f"skipped at {offset}", offset)
                slow, bound = trials.removed(skip), trials.reaches(skip, offset, MATTERS)
                removes.append(slow >= MATTERS)
                assert slow <= bound + 1e-12
                assert bound < MATTERS if slow < MATTERS else bound == pytest.approx(slow, abs=1e-12)
    assert any(removes)
    assert not all(removes)


def test_nine_tenths_of_the_area_lie_within_reach() -> None:
    def rises(*values: float) -> Replayed:
        state = (1.0, 1.0, *(math.exp(v) for v in values))
        return Replayed(0, 2, state, state, 1.0, state)

    long = rises(*[1.0] * 21)
    assert reach([]) == reach([rises(5.0, *[0.0] * 20)]) == replays.LEAST_REACH
    assert reach([long]) == 18  # 19 of 21 equal steps are the first nine tenths of them
    assert reach([rises(*[0.0] * 20, 5.0)]) == HORIZON


# --------------------------------------------------------------------------- what comes first


def test_so_many_pairs_that_their_p_passes_holm() -> None:
    for tests in range(1, 14):
        n = pairs_needed(tests)
        assert tests * 2.0**-n <= ALPHA < tests * 2.0 ** -(n - 1)


def test_every_beginning_of_the_pairs_is_spread_over_the_run() -> None:
    for n in (1, 2, 3, 8, 12, 13):
        pairs = [Pair(k, None, None, None) for k in range(n)]  # type: ignore[arg-type]
        order = [p.number for p in spread(pairs)]
        assert sorted(order) == list(range(n))
        if n >= 8:
            assert min(order[:3]) < n / 3
            assert max(order[:3]) >= n / 2


def test_what_decides_is_replayed_first_and_within_the_time(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SlowClock(monkeypatch, per_step=0.02)
    quick = thrifty(made)
    with made.subject.kept():
        quick.measure_states()
        quick.profile()
        causes = catalogue()
        trials = Screening(quick, causes).trials(suspect(quick.seen))
    found = trials["outlier-sample"]
    deciding = next(t.words for t in found if t.arm == "intervention")
    first_beside = next((k for k, t in enumerate(found) if t.arm == "intervention" and t.words != deciding), len(found))
    arms = [t.arm for t in found[:first_beside]]
    n = arms.count("baseline")
    assert arms[: 2 * LOOK] == ["baseline", "intervention"] * LOOK
    assert n >= LOOK
    assert arms.count("intervention") == n
    assert clock.now <= quick.allowance.whole * 1.05


def test_the_samples_are_named_and_proven_in_a_fraction_of_the_time(made: Experiment, tmp_path: Path) -> None:
    allowed = Allowance(HEAVY_S, len(made.seen.events))
    seen, suspicions, trials = pipeline._experiment(made.seen, made.subject, None, allowed)
    first = pipeline._conclude(seen, suspicions, trials).verdicts[0]
    assert (first.cause, first.outcome) == ("outlier-sample", "confirmed")
    assert {p.sample for p in seen.profiles.values() if p.kind == "one sample"} <= {100, 500}
    assert len(seen.profiles) < sum(e.kind == "spike" for e in seen.events)  # the others hold the same samples


def test_without_time_nothing_is_said_that_is_not_so(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowClock(monkeypatch, per_step=5.0)
    allowed = Allowance(HEAVY_S, len(made.seen.events))
    found = pipeline._conclude(*pipeline._experiment(made.seen, made.subject, None, allowed))
    assert not any(v.outcome == "confirmed" for v in found.verdicts)
    assert any("full=True" in said for said in found.missing)


def test_spikes_whose_batch_holds_a_named_sample_need_no_profile(made: Experiment) -> None:
    quick = thrifty(made)
    with made.subject.kept():
        quick.measure_states()
        quick.profile()
    named = [p for p in quick.seen.profiles.values() if p.kind == "one sample"]
    again = next(e for e in quick.seen.events if e.id in quick.seen.unprofiled)
    assert enough(named, again, quick.seen.run)
    assert not enough(named, replace(again, step=again.step + 1), quick.seen.run)
    assert not enough([], again, quick.seen.run)


def test_unchanged_replays_say_whether_the_record_comes_out_again(made: Experiment) -> None:
    quick = thrifty(made)
    with made.subject.kept():
        same = [quick.replay(quick.pairs((e.id,))[0], BASELINE) for e in made.seen.events[:2]]
        other = quick.replay(quick.pairs((made.seen.events[0].id,))[0], ScaleLr(0.5, "half", "always"))
    assert [r.bitwise for r in of_replays(same)] == [True] * len({m.first_step for m in same})
    assert of_replays([*same, other]) == ()
