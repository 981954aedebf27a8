"""What sets a spike off: the trials of the profile, and the changes that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recorded
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike import batches
from whyspike.cause import find, suspect
from whyspike.errors import NotReplayable
from whyspike.experiment import LEAD
from whyspike.optimizer_interventions import ClipUpdate, ResetMomentum, SetHyperparameters, ShakeLr
from whyspike.profile import DRAWS, Profile, sequential
from whyspike.sample_interventions import (
    LeaveOut,
    OtherBatches,
    PutRow,
    ReplaceNamed,
    ReplaceRow,
    SwapBatches,
    WithoutSamples,
    with_row,
)
from whyspike.seams import BASELINE, EpochContext, Intervention, StepContext, training_step
from whyspike.training import Training

Batch = tuple[torch.Tensor, torch.Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def data(n: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g), torch.randn(n, 1, generator=g)


def at(step: int, event: int | None = 5) -> StepContext:
    return StepContext(
        step=step, epoch=0, index=step, n_samples=8, batch_size=8, is_event=step == event, event_step=event
    )


def draw(n: int, rng: np.random.Generator) -> Batch:
    return data(n, int(rng.integers(1 << 30)))


# --------------------------------------------------------------------------- what is in the batches


def test_one_row_is_replaced_and_the_others_stay() -> None:
    batch, sample = data(8), data(1, seed=1)
    made = with_row(batch, 3, sample)
    for old, new, one in zip(batch, made, sample, strict=True):
        assert torch.equal(new[3], one[0])
        assert torch.equal(new[[0, 1, 2, 4, 5, 6, 7]], old[[0, 1, 2, 4, 5, 6, 7]])


def test_other_batches_come_until_the_event_and_are_the_same_in_every_replay() -> None:
    arm, batch = OtherBatches(draw, 3), data(8)
    made = []
    for _ in range(2):
        arm.begin(nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
        made.append([arm.batch(at(step), batch) for step in (3, 4, 5, 6)])
    for first, second in zip(*made, strict=True):
        assert batches.equal(first, second)
    assert [batches.equal(b, batch) for b in made[0]] == [False, False, False, True]
    assert not batches.equal(made[0][0], made[0][1])


def test_a_change_at_an_offset_acts_there_alone() -> None:
    batch = data(8)
    for arm in (ReplaceRow(2, draw, 0, -3, "a row replaced"), PutRow(data(1, seed=4), -3, "a row put in")):
        arm.begin(nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
        assert [batches.equal(arm.batch(at(step), batch), batch) for step in range(8)] == [k != 2 for k in range(8)]
        assert batches.equal(arm.batch(at(2, event=None), batch), batch)


def test_two_batches_trade_places() -> None:
    early, late, third = data(8), data(8, seed=1), data(8, seed=2)
    arm = SwapBatches(-4, -1, early, late)
    assert batches.equal(arm.batch(at(1), early), late)
    assert batches.equal(arm.batch(at(4), late), early)
    assert batches.equal(arm.batch(at(5), third), third)


def test_named_rows_are_replaced_wherever_they_are_drawn() -> None:
    batch = data(8)
    for beside, rows in ((False, [3, 6]), (True, [4, 5])):
        arm = ReplaceNamed({5: (3, 6), 7: (0,)}, lambda n: data(n, seed=9), "replaced", beside=beside)
        made = arm.batch(at(5), batch)
        changed = [k for k in range(8) if not torch.equal(made[0][k], batch[0][k])]
        assert changed == rows
        assert batches.equal(arm.batch(at(4), batch), batch)
        assert not batches.equal(arm.batch(at(7, event=5), batch), batch)


def test_what_is_left_out_has_the_highest_loss() -> None:
    model = nn.Linear(3, 1)
    x, y = data(20)
    y[7] += 50
    arm = LeaveOut(0.05, loss_fn)
    arm.begin(model, torch.optim.SGD(model.parameters(), lr=1))
    left = arm.batch(at(0), (x, y))
    assert batches.size(left) == 20
    assert not any(torch.equal(row, y[7]) for row in left[1])
    assert all(any(torch.equal(row, one) for row in left[1]) for k, one in enumerate(y) if k != 7)


def test_samples_are_left_out_of_every_batch_of_an_epoch() -> None:
    ids = [np.arange(0, 4), np.arange(4, 8)]
    context = EpochContext(epoch=0, batch_size=4, previous=(), rng=np.random.default_rng(0))
    made = WithoutSamples([1, 6]).order(context, ids)
    assert [b.tolist() for b in made] == [[0, 2, 3, 0], [4, 5, 7, 4]]


# --------------------------------------------------------------------------- what the optimizer makes of it


def updates(arm: Intervention, optimizer: str = "adam", steps: int = 4) -> list[torch.Tensor]:
    """The update of each step, with the same gradients whatever the arm does: the loss is linear."""
    weight = nn.Parameter(torch.zeros(400))
    model = nn.Module()
    model.weight = weight
    made = (
        torch.optim.Adam([weight], lr=0.1) if optimizer == "adam" else torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    )
    towards = torch.linspace(-2, 2, 400)
    for _ in range(30):  # a state to begin with
        training_step(model, made, lambda m, b: (m.weight * towards).sum(), [towards], at(0))
    arm.begin(model, made)
    found = []
    for step in range(steps):
        before = weight.detach().clone()
        training_step(model, made, lambda m, b: (m.weight * towards).sum(), [towards], at(step), arm)
        found.append(weight.detach() - before)
    return found


def test_shaken_learning_rates_change_every_weight_and_not_the_mean() -> None:
    plain, shaken = updates(BASELINE), updates(ShakeLr(0.1))
    for a, b in zip(plain, shaken, strict=True):
        ratio = b / a
        assert torch.allclose((ratio - 1).abs(), torch.tensor(0.1), atol=1e-3)
        assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(torch.sign(shaken[0] / plain[0] - 1), torch.sign(shaken[3] / plain[3] - 1))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_momentum_that_is_reset_fills_again_and_warm_makes_up_for_it(optimizer: str) -> None:
    plain = updates(BASELINE, optimizer)
    cold, warm = updates(ResetMomentum(warm=False), optimizer), updates(ResetMomentum(warm=True), optimizer)
    for k, (a, b, c) in enumerate(zip(plain, cold, warm, strict=True), 1):
        some = a.abs() > 1e-6
        full = 1 - 0.9 ** (30 + k)  # what the moment, or its correction, is after 30 steps
        assert (b / a)[some].median() == pytest.approx((1 - 0.9**k) / full, rel=0.02)
        assert (c / a)[some].median() == pytest.approx(1 / full, rel=0.02)


def test_hyperparameters_are_other_ones_during_the_update_only() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight], betas=(0.9, 0.999))
    arm = SetHyperparameters({"betas": (0.5, 0.9), "momentum": 0.3}, "other betas")
    arm.before_update(at(0), optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert "momentum" not in optimizer.param_groups[0]
    arm.after_update(at(0), optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_an_update_is_clipped_where_its_gradient_is_far_above_the_second_moment() -> None:
    def one(scale: float, arm: Intervention) -> torch.Tensor:
        weight = nn.Parameter(torch.zeros(50))
        model = nn.Module()
        model.weight = weight
        made = torch.optim.Adam([weight], lr=0.1)
        for _ in range(50):
            training_step(model, made, lambda m, b: m.weight.sum(), [torch.ones(1)], at(0))
        before = weight.detach().clone()
        arm.begin(model, made)
        training_step(model, made, lambda m, b: scale * m.weight.sum(), [torch.ones(1)], at(0), arm)
        return weight.detach() - before

    assert torch.allclose(one(1.0, ClipUpdate()), one(1.0, BASELINE))
    v = 1 - 0.999**51 + 0.001 * (20**2 - 1)  # the second moment of 50 gradients of 1 and one of 20
    rms = 20 / (v / (1 - 0.999**51)) ** 0.5
    assert torch.allclose(one(20.0, ClipUpdate()) * rms, one(20.0, BASELINE), rtol=1e-3)


# --------------------------------------------------------------------------- the decision


def test_the_sequential_test_keeps_its_error_rates() -> None:
    rng = np.random.default_rng(0)
    wrong, undecided, needed = {0.8: 0, 0.2: 0}, 0, []
    for chance in wrong:
        for _ in range(4000):
            shares: list[float] = []
            said = None
            while said is None and len(shares) < DRAWS:
                shares.append(float(rng.random() < chance))
                said = sequential(shares)
            wrong[chance] += said is not None and said is not (chance == 0.8)
            undecided += said is None
            needed.append(len(shares))
    assert max(wrong.values()) / 4000 < 0.05
    assert undecided / 8000 < 0.05
    assert np.mean(needed) < 6


# --------------------------------------------------------------------------- in a training


def training(*, odd: int | None, full: bool = False, lr: float = 0.05, seed: int = 0) -> Training:
    """A regression of 512 samples; one target may be far off, and the batch may be all of them."""
    x, y = data(512, seed=3)
    y = torch.tanh(x.sum(1, keepdim=True)) + 0.1 * y
    if odd is not None:
        y[odd] += 80
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    size = 512 if full else 8
    loader = DataLoader(
        TensorDataset(x, y), batch_size=size, shuffle=not full, generator=torch.Generator().manual_seed(seed)
    )
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        loss_fn=loss_fn,
        loader=loader,
        epochs=12 if not full else 200,
    )


@pytest.mark.usefixtures("one_thread")
def test_a_window_that_is_begun_later_replays_the_same_steps_bitwise(tmp_path: Path) -> None:
    found = recorded(training(odd=77), tmp_path / "run")
    subject = found.subject
    with subject.kept():
        compared = 0
        for event in found.seen.events:
            try:
                window = subject.window(event.step)
            except Exception:
                continue
            later = subject.begun(window, LEAD)
            if later.path == window.path:
                continue
            whole, part = subject.replay(window), subject.replay(later)
            assert part.first_step == event.step - LEAD
            skipped = part.first_step - whole.first_step
            assert part.reported == whole.reported[skipped:]
            assert part.state == whole.state[skipped:]
            assert part.reproduced
            compared += 1
        assert compared >= 2


@pytest.mark.usefixtures("one_thread")
def test_the_sample_that_does_it_is_named(tmp_path: Path) -> None:
    found = recorded(training(odd=77), tmp_path / "run")
    with found.subject.kept():
        found.measure_states()
        seen = found.profile()
    named = [p for p in seen.profiles.values() if p.kind == "one sample"]
    assert len(named) >= 4
    assert {p.sample for p in named} == {77}
    assert all(p.sample_known and p.sample_share is not None and p.sample_share > 0.8 for p in named)
    assert all(p.sample_placebo is not None and p.sample_placebo < 0.2 for p in named)
    for p in named:
        event = seen.event(p.event)
        assert event.sample_ids == ("77",)
        row = int(np.searchsorted(seen.run.step, event.step))
        assert seen.run.sample_ids is not None
        assert 77 in seen.run.sample_ids[row]


@pytest.mark.usefixtures("one_thread")
def test_full_batches_blame_no_batch_and_no_sample(tmp_path: Path) -> None:
    made = training(odd=None, full=True)
    made.optimizer = torch.optim.Adam(made.model.parameters(), lr=0.3, betas=(0.9, 0.9))
    found = recorded(made, tmp_path / "run")
    assert found.seen.events
    with found.subject.kept():
        found.measure_states()
        seen = found.profile()
    assert seen.profiles
    for p in seen.profiles.values():
        assert p.same_batch
        assert p.batch_step is None
        assert p.sample is None
        assert not any("skipped" in words for words, _ in p.shares)
    assert all(e.sample_ids == () for e in seen.events)


def test_a_profile_remembers_its_trials_by_their_words() -> None:
    made = Profile(
        event="e1", kind="undecided", onset=3, height=2.0, same_batch=False, shares=(("learning rate x 0.5", 0.9),)
    )
    assert made.share("learning rate x 0.5") == 0.9
    assert made.share("something else") is None


@pytest.mark.usefixtures("one_thread")
def test_without_time_the_highest_event_is_measured_and_the_rest_is_said_to_be_left_out(tmp_path: Path) -> None:
    found = recorded(training(odd=77), tmp_path / "run")
    found.allowance.whole = 0.0
    with found.subject.kept():
        found.measure_states()
        assert found.per_replay > 0
        seen = found.profile()
        assert not seen.profiles
        assert any("prove(..., full=True)" in words for words in seen.missing)
        cause = find("momentum-carry-over")
        with pytest.raises(NotReplayable, match="a quarter of the training's"):
            found.trials(cause, suspect(cause, seen.events, []))
