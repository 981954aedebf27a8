"""Causes in the optimizer and in the make-up of the batches: what each says of a record, and what recording sees."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import whyspike
from whyspike.cause import Observation, Setup, find
from whyspike.exposures import exposures
from whyspike.optimizer_interventions import HoldLr, WarmUp
from whyspike.readers import read
from whyspike.recurrent_interventions import TruncateGradient
from whyspike.seams import StepContext, training_step
from whyspike.types import Event, Mark, Run

ADAM = {"name": "Adam", "defaults": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}}


def observed(
    *events: Event, steps: int = 600, marks: tuple[Mark, ...] = (), facts: Any = None, **run: Any
) -> Observation:
    """A flat noisy loss with these events."""
    made = Run(
        source="made by hand",
        reader="test",
        step=np.arange(steps),
        loss=np.exp(0.05 * np.random.default_rng(0).standard_normal(steps)),
        epoch=np.zeros(steps, dtype=int),
        index=np.arange(steps),
        n_samples=run.pop("n_samples", np.full(steps, 32)),
        batch_size=32,
        facts=facts or {},
        marks=marks,
        **run,
    )
    return Observation(run=made, events=events)


def spike(step: int, name: str = "e1", **more: Any) -> Event:
    return Event(id=name, kind="spike", step=step, last_step=step + 5, reported=3.0, **more)


def at(step: int, event: int = 4) -> StepContext:
    since = step - event if step >= event else None
    return StepContext(step=step, epoch=0, index=step, n_samples=8, batch_size=8, since_event=since, event_step=event)


# --------------------------------------------------------------------------- lr-restart


def rates(*jumps: int, steps: int = 600) -> np.ndarray:
    """A learning rate that falls by 1 % a step and is back at 1 at these steps."""
    begun = np.zeros(steps, dtype=int)
    for step in jumps:
        begun[step:] = step
    return 0.99 ** (np.arange(steps) - begun)


def test_an_event_at_a_rise_of_the_learning_rate_is_its_restart_and_one_elsewhere_is_not():
    cause = find("lr-restart")
    made = cause.signature(observed(spike(301), spike(450, "e2"), lr=rates(300)))
    assert made is not None
    assert made.events == ("e1",)
    assert cause.signature(observed(spike(450), lr=rates(300))) is None
    assert list(cause.moments(observed(lr=rates(300)), (spike(301),)) or ()) == [300]


def test_neither_a_warm_up_nor_a_decay_is_a_restart():
    warm = np.minimum(1.0, (np.arange(600) + 1) / 10)
    for lr in (warm, np.ones(600), 0.5 ** (np.arange(600) // 100), None):
        assert find("lr-restart").signature(observed(spike(1), spike(200, "e2"), lr=lr)) is None


def test_a_held_learning_rate_falls_but_does_not_rise():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    held, used = HoldLr("held"), []
    held.begin(nn.Module(), optimizer)
    for step, lr in enumerate((0.5, 0.4, 0.3, 0.2, 1.0, 0.9, 0.1)):
        optimizer.param_groups[0]["lr"] = lr
        held.before_update(at(step), optimizer)
        used.append(optimizer.param_groups[0]["lr"])
        held.after_update(at(step), optimizer)
        assert optimizer.param_groups[0]["lr"] == lr
    assert used == [0.5, 0.4, 0.3, 0.2, 0.2, 0.2, 0.1]


def test_a_warm_up_grows_to_the_learning_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    warm, used = WarmUp(4, "warm"), []
    for step in range(6):
        warm.before_update(at(step), optimizer)
        used.append(optimizer.param_groups[0]["lr"])
        warm.after_update(at(step), optimizer)
    assert used == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


# --------------------------------------------------------------------------- grads-not-zeroed


def trained(path, *, zero=lambda step, micro: micro == 0, micros: int = 1, clip: str | None = None, steps: int = 60):
    """A small training in a loop that zeroes, accumulates and clips as told; its record."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    data = torch.utils.data.TensorDataset(torch.randn(steps * micros * 8, 6), torch.randint(3, (steps * micros * 8,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    with whyspike.watch(model, optimizer, loss_fn=loss_fn, path=path, closely=True) as rec:
        step = micro = 0
        for batch in rec.batches(loader):
            if zero(step, micro):
                optimizer.zero_grad()
            loss = loss_fn(model, batch)
            (loss / micros).backward()
            micro += 1
            if micro < micros:
                continue
            if clip == "before":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if clip == "after":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            rec.step(loss)
            step, micro = step + 1, 0
    return read(path)


@pytest.mark.parametrize(
    ("loop", "sick"),
    [
        ({}, False),
        ({"micros": 3}, False),
        ({"clip": "before"}, False),
        ({"zero": lambda step, micro: step == 0 and micro == 0}, True),
        ({"zero": lambda step, micro: step % 25 == 0 and micro == 0}, True),
        ({"zero": lambda step, micro: False, "micros": 2, "clip": "before"}, True),
    ],
)
def test_a_gradient_that_holds_the_last_one_is_seen_and_an_accumulation_is_none(tmp_path, loop, sick):
    run = trained(tmp_path / "run", **loop)
    made = find("grads-not-zeroed").signature(Observation(run=run, events=()))
    assert (made is not None) == sick
    if made is not None:
        assert (made.outcome, made.identity, made.alone) == ("likely", True, True)


def test_a_second_network_whose_backward_pass_leaves_gradients_is_no_fault(tmp_path):
    """As the discriminator of a GAN: the generator's pass goes through it, and its own begins with zero_grad()."""
    torch.manual_seed(0)
    critic, maker = nn.Linear(4, 12), nn.Linear(3, 4)
    head = nn.Linear(12, 1)
    model = nn.Sequential(critic, nn.Tanh(), head)
    own, other = torch.optim.SGD(model.parameters(), lr=0.01), torch.optim.SGD(maker.parameters(), lr=0.01)
    with whyspike.watch(model, own, path=tmp_path / "run", closely=True) as rec:
        for x in rec.batches([torch.randn(8, 4) for _ in range(60)]):
            other.zero_grad()
            model(maker(torch.randn(8, 3))).mean().backward()
            other.step()
            own.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            own.step()
            rec.step(loss)
    assert not read(tmp_path / "run").marked("gradients-left")


def test_growing_gradients_are_told_with_their_counts():
    marks = tuple(Mark(k, "gradients-left", {"looked": k, "left": k, "share": 2.0 * k}) for k in (1, 2, 3))
    seen = observed(spike(50), marks=marks)
    made = find("grads-not-zeroed").signature(seen)
    assert made is not None
    assert (made.evidence[0].observed, made.evidence[0].expected) == ("3 of 3 that were looked at", "0 of 3")
    assert "never zeroed" in find("grads-not-zeroed").sentence(seen, seen.events)


# --------------------------------------------------------------------------- clip-misuse


@pytest.mark.parametrize(("clip", "sick"), [("before", False), ("after", True), (None, False)])
def test_a_clipping_after_the_update_is_seen(tmp_path, clip, sick):
    run = trained(tmp_path / "run", clip=clip)
    made = find("clip-misuse").signature(Observation(run=run, events=()))
    assert (made is not None) == sick
    if made is not None:
        assert made.identity
        assert made.evidence[0].observed == "60 of 60"


class Scaler:
    """What the recorder asks of torch.amp.GradScaler, before and after its unscale_."""

    def __init__(self, optimizer: torch.optim.Optimizer, stage: str) -> None:
        self._per_optimizer_states = {id(optimizer): {"stage": SimpleNamespace(name=stage)}}

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return 1024.0


def test_gradients_that_are_still_scaled_are_told_from_unscaled_ones():
    from whyspike.cliporder import unscaled_by

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    assert unscaled_by(None, optimizer) == 1.0
    assert unscaled_by(Scaler(optimizer, "UNSCALED"), optimizer) == 1.0
    assert unscaled_by(Scaler(optimizer, "READY"), optimizer) == 1024.0
    real = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weight = optimizer.param_groups[0]["params"][0]
    real.scale((weight**2).sum() + weight.sum()).backward()
    assert unscaled_by(real, optimizer) == 1024.0
    real.unscale_(optimizer)
    assert unscaled_by(real, optimizer) == 1.0


def test_a_clipping_of_scaled_gradients_is_proven_by_its_marks():
    data = {"limit": 1.0, "norm": 3000.0, "scale": 1024.0, "looked": 100, "seen": 100}
    seen = observed(marks=(Mark(99, "clip-scaled", data),))
    made = find("clip-misuse").signature(seen)
    assert made is not None
    assert (made.identity, made.harm) == (True, "damaging")
    assert "has not unscaled" in find("clip-misuse").sentence(seen, ())
    few = {**data, "seen": 3}
    assert find("clip-misuse").signature(observed(marks=(Mark(99, "clip-scaled", few),))) is None


# --------------------------------------------------------------------------- batch-size-ramp


def test_a_change_of_the_batch_size_that_lasts_is_one_and_a_small_last_batch_is_none():
    ramp = np.where(np.arange(600) < 300, 128, 8)
    cause = find("batch-size-ramp")
    made = cause.signature(observed(spike(305), spike(500, "e2"), n_samples=ramp))
    assert made is not None
    assert made.events == ("e1",)
    assert "128 to 8 at step 300" in made.evidence[0].observed
    assert made.evidence[2].observed == "x 16"
    last = np.where(np.arange(600) % 50 == 49, 8, 128)
    assert cause.signature(observed(spike(301), n_samples=last)) is None


def test_a_learning_rate_that_follows_the_batch_size_keeps_the_noise():
    ramp = np.where(np.arange(600) < 300, 128, 8)
    made = find("batch-size-ramp").signature(observed(spike(305), n_samples=ramp, lr=ramp / 128))
    assert made is not None
    assert made.evidence[2].observed == "x 1"


# --------------------------------------------------------------------------- data-mixture-change


def drawn(share: Any, steps: int = 600, size: int = 1000) -> tuple[np.ndarray, ...]:
    """Ids of batches of 32 from two sources of that size, with the share of the second by step."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(size, size=32) + size * (rng.random(32) < share(k)) for k in range(steps))


def test_other_shares_of_the_sources_are_seen_and_a_steady_mixture_is_none():
    cause = find("data-mixture-change")
    ids = drawn(lambda step: 0.1 if step < 300 else 0.8)
    made = cause.signature(observed(spike(303), spike(500, "e2"), sample_ids=ids))
    assert made is not None
    assert made.events == ("e1",)
    (moment,) = cause.moments(observed(sample_ids=ids), (spike(303),)) or ()
    assert moment in range(298, 303)
    steady = drawn(lambda step: 0.4)
    assert cause.signature(observed(spike(303), sample_ids=steady)) is None


def test_an_epoch_in_the_order_of_the_file_has_no_change_at_one_step():
    in_order = tuple(np.arange(32 * k, 32 * k + 32) for k in range(600))
    assert find("data-mixture-change").signature(observed(spike(303), sample_ids=in_order)) is None


def test_the_chance_of_a_chi_square_is_that_of_scipy():
    from scipy.stats import chi2

    from whyspike.causes.data_mixture_change import _tail

    for freedom in (4, 9, 19):
        for value in (5.0, 15.0, 30.0):
            assert 0.5 < _tail(value, freedom) / chi2.sf(value, freedom) < 2.0


# --------------------------------------------------------------------------- hard but legit data


@pytest.mark.parametrize(("decay", "learnt"), [(0.8, True), (1.0, False)])
def test_an_excess_that_fades_is_learnt_and_one_that_stays_is_not(decay, learnt):
    seen = observed()
    ids = tuple(np.full(32, k) for k in range(600))
    rows = range(20, 600, 40)
    loss = seen.run.loss.copy()
    for n, row in enumerate(rows):
        ids[row][3] = 7777
        loss[row] += 5 * decay**n
    run = replace(seen.run, sample_ids=ids, loss=loss)
    found = exposures(run, [7777])
    assert found is not None
    assert found.n == len(rows)
    assert found.learnt == learnt
    assert found.first == pytest.approx(32 * 5 * decay**2, rel=0.2)
    assert exposures(run, []) is None
    assert exposures(seen.run, [7777]) is None


# --------------------------------------------------------------------------- previews


def test_a_training_that_begins_at_full_learning_rate_and_spikes_early_may_lack_a_warm_up():
    cause = find("no-warmup")
    made = cause.signature(observed(spike(20, state=2.0), lr=np.ones(600)))
    assert made is not None
    assert made.outcome == "untested"
    later = cause.signature(observed(spike(20, state=2.0), spike(400, "e2", state=2.0), lr=np.ones(600)))
    assert later is not None
    assert later.outcome == "refuted"
    warm = np.minimum(1.0, (np.arange(600) + 1) / 100)
    assert cause.signature(observed(spike(20, state=2.0), lr=warm)) is None


def test_l2_in_adam_is_noted_before_training():
    def noted(optimizer: str, decay: float) -> bool:
        unknown = dict.fromkeys(("dataset_size", "batch_size", "last_batch", "shuffle", "drop_last", "exponent"))
        facts = {"optimizer": optimizer, "weight_decay": decay}
        setup = Setup(**unknown, exponent_reason=None, accumulate=1, facts=facts)  # type: ignore[arg-type]
        return find("weight-decay-misuse").preflight(setup) is not None

    assert noted("Adam", 0.01)
    assert not noted("Adam", 0.0)
    assert not noted("AdamW", 0.01)
    assert not noted("SGD", 0.01)


@pytest.mark.parametrize("eps", [1e-12, 1e-1])
def test_the_second_moment_is_held_against_eps(tmp_path, eps):
    from whyspike.secondmoment import second_moments

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)
    with whyspike.watch(model, optimizer, path=tmp_path / "run", closely=True) as rec:
        for x in rec.batches([torch.randn(8, 6) for _ in range(80)]):
            loss = (model(x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.step(loss)
    found = [m for m in second_moments(read(tmp_path / "run").capsules) if m.step >= 10]
    assert found
    roots = torch.cat([(s["exp_avg_sq"] / (1 - 0.999**80)).sqrt().flatten() for s in optimizer.state.values()])
    assert found[-1].median == pytest.approx(float(roots.median()), rel=0.5)
    assert found[-1].below == (0.0 if eps == 1e-12 else 1.0) or 0.0 < found[-1].below <= 1.0
    assert found[-1].eps == eps


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_cut_gradient_leaves_the_loss_and_forgets_what_is_further_back(kind):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 5, batch_first=True)
            self.out = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 12, 3, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) ** 2).sum()

    whole = training_step(model, optimizer, loss_fn, [x], at(4))
    reached = x.grad.abs().sum((0, 2)).clone()  # type: ignore[union-attr]
    x.grad = None
    cut = TruncateGradient(4)
    cut.begin(model, optimizer)
    made = training_step(model, optimizer, loss_fn, [x], at(4), cut)
    assert made.loss == pytest.approx(whole.loss, rel=1e-6)
    assert bool((reached > 0).all())
    assert x.grad.abs().sum((0, 2))[:8].tolist() == [0.0] * 8  # type: ignore[union-attr]
    assert torch.allclose(x.grad.abs().sum((0, 2))[8:], reached[8:], rtol=1e-4)  # type: ignore[union-attr]
    assert "forward" not in model.cell.__dict__
