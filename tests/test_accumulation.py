"""Micro-batches: what a loop divides by, what the mean of means misses, and the two causes that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike import Training
from whyspike.accumulation import Accumulation, Convention, Split, convention, whole_loss
from whyspike.cause import Observation, find
from whyspike.interventions import WeightMicroLosses
from whyspike.preflight import check, measure_setup
from whyspike.readers.runfolder import read
from whyspike.replay import Subject
from whyspike.rerun import train_recorded
from whyspike.seams import StepContext, StepRule, training_step
from whyspike.types import Event, Run, Series

torch.set_num_threads(1)
IGNORED = -100


def token_mean(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=IGNORED)


def tokens(lengths: list[int], longest: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (B, longest, 4) and labels of 3 classes, ignored beyond each length."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (len(lengths), longest), generator=draw)
    for row, n in enumerate(lengths):
        labels[row, n:] = IGNORED
    return torch.randn(len(lengths), longest, 4, generator=draw), labels


# --------------------------------------------------------------------------- the identity


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 20.0)), min_size=2, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_what_the_mean_of_means_misses_is_the_covariance_over_the_mean(rows: list[tuple[int, float]]):
    split = Split(step=0, units=tuple(float(n) for n, _ in rows), losses=tuple(x for _, x in rows), whole=0.0)
    slow = sum(n * x for n, x in rows) / sum(n for n, _ in rows)
    assert split.weighted == pytest.approx(slow)
    assert split.weighted - split.mean_of_means == pytest.approx(split.covariance, abs=1e-9)


def test_the_unit_is_found_under_which_one_batch_is_the_weighted_mean():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    micro = tuple(tokens(lengths, seed=k) for k, lengths in enumerate(([6, 6], [6, 5], [1, 1])))
    whole = tuple(torch.cat(parts) for parts in zip(*micro, strict=True))
    unit, misfit, [split] = whole_loss([(7, micro, whole)], lambda b, step: float(token_mean(model, b).detach()))
    assert unit == "entries of batch[1] other than -100"
    assert misfit is not None
    assert misfit < 1e-6
    assert split.units == (12.0, 11.0, 2.0)
    assert split.whole == pytest.approx(split.weighted, rel=1e-6)
    assert Accumulation(convention=Convention(nominal=3), unit=unit, misfit=misfit, splits=(split,)).differs


def test_a_mean_over_samples_is_a_mean_over_samples():
    model = nn.Linear(6, 3)
    draw = torch.Generator().manual_seed(0)
    micro = tuple((torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(3))
    whole = tuple(torch.cat(parts) for parts in zip(*micro, strict=True))
    unit, misfit, splits = whole_loss(
        [(0, micro, whole)], lambda b, step: float(F.cross_entropy(model(b[0]), b[1]).detach())
    )
    assert unit == "samples"
    assert misfit is not None
    assert misfit < 1e-6
    assert not Accumulation(convention=Convention(nominal=3), unit=unit, misfit=misfit, splits=splits).differs


def test_a_loss_that_compares_its_samples_is_a_mean_over_nothing():
    draw = torch.Generator().manual_seed(0)
    micro = tuple((torch.randn(8, 6, generator=draw),) for _ in range(3))
    whole = (torch.cat([m[0] for m in micro]),)

    def contrastive(batch: Any, step: int) -> float:
        x = F.normalize(batch[0])
        return float(F.cross_entropy(x @ x.t() / 0.1, torch.arange(len(x))))

    unit, misfit, splits = whole_loss([(0, micro, whole)], contrastive)
    assert (unit, splits) == (None, ())
    assert misfit is not None
    assert misfit > 0.01


def test_micro_losses_weighted_by_their_units_make_the_mean_over_all_of_them():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    micro = [tokens([6, 6], seed=1), tokens([1, 1], seed=2)]
    whole = tuple(torch.cat(parts) for parts in zip(*micro, strict=True))
    at = StepContext(step=5, epoch=0, index=5, n_samples=4, batch_size=4, is_event=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    weighting = WeightMicroLosses({5: (12.0, 2.0)}, "weighted")
    made = training_step(model, optimizer, token_mean, micro, at, weighting, StepRule(accumulate=2))
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss = token_mean(model, whole)
    loss.backward()
    assert made.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    for ours, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad)


# --------------------------------------------------------------------------- the convention of a loop


def record(path: Path, divides: str, logs: str) -> tuple[Run, Any]:
    """Five micro-batches per epoch, three per step: the second window of an epoch has two."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(7)
    data = TensorDataset(torch.randn(40, 6, generator=draw), torch.randint(3, (40,), generator=draw))
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
    with whyspike.watch(model, optimizer, loss_fn=cross_entropy, path=path) as rec:
        for _ in range(30):
            window: list[Any] = []
            for index, batch in enumerate(rec.batches(loader)):
                window.append(batch)
                if len(window) < 3 and index + 1 < len(loader):
                    continue
                optimizer.zero_grad()
                n = 3 if divides == "nominal" else len(window)
                losses = [cross_entropy(model, b) for b in window]
                for loss in losses:
                    (loss / n).backward()
                optimizer.step()
                total = torch.stack([x.detach() for x in losses])
                rec.step(total.mean() if logs == "mean" else total.sum() / n)
                window = []
    return read(path), rec


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("logs", ["mean", "sum"])
@pytest.mark.parametrize("divides", ["own", "nominal"])
def test_replays_tell_what_a_loop_divides_by(divides: str, logs: str, tmp_path: Path):
    run, rec = record(tmp_path / "run", divides, logs)
    subject = Subject.of(rec, run)
    assert subject is not None
    with subject.kept():
        subject.learn_convention()
        made = subject.convention
        assert (made.nominal, made.divides) == (3, divides)
        assert made.certain
        if divides == "nominal":  # divided by its own number, the sum is the mean
            assert made.logs == logs
        window = subject.window(subject.capsule(run.capsules[-2]).step)
        assert subject.replay(window).noise < 1e-6


def test_without_a_cut_window_there_is_nothing_to_learn():
    assert convention(4, None) == Convention(nominal=4)
    made = convention(4, lambda c: 0.0 if (c.divides, c.logs) == ("nominal", "sum") else 0.3)
    assert (made.divides, made.logs, made.noise, made.rival, made.certain) == ("nominal", "sum", 0.0, 0.3, True)
    assert made.rule(1) == StepRule(accumulate=4, logs="sum")
    assert not convention(4, lambda c: 0.0).certain


def test_a_training_of_ours_divides_by_the_nominal_number(tmp_path: Path):
    draw = torch.Generator().manual_seed(7)
    data = TensorDataset(torch.randn(40, 6, generator=draw), torch.randint(3, (40,), generator=draw))
    model = nn.Linear(6, 3)
    training = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=cross_entropy,
        loader=DataLoader(data, batch_size=8, shuffle=True),
        epochs=20,
        accumulate=3,
    )
    with whyspike.watch(model, training.optimizer, loss_fn=cross_entropy, path=tmp_path / "run") as rec:
        train_recorded(training, rec)
    subject = Subject.of(rec, read(tmp_path / "run"))
    assert subject is not None
    with subject.kept():
        subject.learn_convention()
    assert (subject.convention.divides, subject.convention.logs) == ("nominal", "mean")


# --------------------------------------------------------------------------- before training


def make(lengths: list[int], accumulate: int, batch_size: int = 2, **kw: Any) -> Training:
    model = nn.Linear(4, 3)
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=token_mean,
        loader=DataLoader(TensorDataset(*tokens(lengths)), batch_size=batch_size),
        epochs=1,
        accumulate=accumulate,
        **kw,
    )


def test_micro_batches_of_different_lengths_are_a_finding():
    made = measure_setup(make([6, 6, 1, 1], 2))
    assert made.split is not None
    assert made.split[0] != pytest.approx(made.split[1], rel=1e-2)
    assert [f.cause for f in check(make([6, 6, 1, 1], 2)).findings] == ["grad-accum-normalization"]


@pytest.mark.parametrize(("lengths", "accumulate"), [([6, 6, 6, 6], 2), ([6, 6, 1, 1], 1), ([6, 1, 6, 1], 2)])
def test_micro_batches_that_hold_as_much_are_none(lengths: list[int], accumulate: int):
    assert "grad-accum-normalization" not in [f.cause for f in check(make(lengths, accumulate)).findings]


def test_a_cut_window_is_a_note():
    cut = check(make([6] * 10, 2))
    whole = check(make([6] * 8, 2))
    assert [n.id for n in cut.notes if n.id == "partial-accumulation-window"]
    assert not [n.id for n in whole.notes if n.id == "partial-accumulation-window"]
    [note] = [n for n in cut.notes if n.id == "partial-accumulation-window"]
    assert "1 of 2 micro-batches" in note.text


# --------------------------------------------------------------------------- the causes

EPOCH, K, MICRO = 20, 4, 8


def observed(*, reported: float = 0.25, last: int = MICRO, made: Convention | None = None, norm: float = 0.25) -> Any:
    """Epochs of twenty steps whose last window has one micro-batch of four, as one periodic dip."""
    steps = 10 * EPOCH
    end = np.arange(steps) % EPOCH == EPOCH - 1
    run = Run(
        source="made by hand",
        reader="test",
        step=np.arange(steps),
        loss=np.where(end, reported, 1.0),
        epoch=np.arange(steps) // EPOCH,
        index=np.arange(steps) % EPOCH,
        n_samples=np.where(end, last, K * MICRO),
        steps_per_epoch=EPOCH,
        batch_size=K * MICRO,
        signals={"gradient_norm": Series(np.arange(steps), np.where(end, norm, 1.0))},
        facts={"accumulate": K, "batch_size": MICRO},
    )
    event = Event(id="e1", kind="periodic", step=EPOCH - 1, last_step=steps - 1, period=EPOCH, reported=reported)
    accumulation = None if made is None else Accumulation(convention=made)
    return Observation(run=run, events=(event,), accumulation=accumulation)


PARTIAL = find("partial-accumulation-window")
CERTAIN = Convention(nominal=K, divides="nominal", logs="sum", noise=0.0, rival=0.7)


def test_a_dip_to_r_over_k_is_the_cut_window():
    made = PARTIAL.signature(observed())
    assert made is not None
    assert (made.outcome, made.identity) == ("likely", False)
    assert [(e.observed, e.expected[:5]) for e in made.evidence[:2]] == [("1 of 4", "4"), ("0.25", "0.25 ")]
    assert "1 of 4 micro-batches" in PARTIAL.sentence(observed(), observed().events)


def test_the_replay_makes_it_an_identity_or_rules_it_out():
    sure = PARTIAL.signature(observed(made=CERTAIN))
    assert sure is not None
    assert sure.identity
    own = Convention(nominal=K, divides="own", logs="mean", noise=0.0, rival=0.7)
    other = PARTIAL.signature(observed(made=own))
    assert other is not None
    assert other.outcome == "refuted"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"reported": 0.7}, "refuted"),
        ({"reported": 2.0}, None),
        ({"last": K * MICRO}, None),
        ({"last": 3 * MICRO}, "refuted"),
    ],
)
def test_another_height_or_another_window_is_not(changes: dict[str, Any], outcome: str | None):
    made = PARTIAL.signature(observed(**changes))
    assert (None if made is None else made.outcome) == outcome


NORMALIZATION = find("grad-accum-normalization")


def split_run(*, ratio: float, unit: str | None = "tokens", height: float = 4.0) -> Observation:
    """One spike whose four micro-batches hold 160, 160, 160 and 8 tokens; the last has `ratio` times their loss."""
    losses = (0.1, 0.1, 0.1, 0.1 * ratio)
    n = (160.0, 160.0, 160.0, 8.0)
    made = Split(step=50, units=n, losses=losses, whole=float(np.average(losses, weights=n)))
    run = Run(source="made by hand", reader="test", step=np.arange(100), loss=np.full(100, 0.1), batch_size=16)
    event = Event(id="e1", kind="spike", step=50, last_step=50, reported=height)
    accumulation = Accumulation(
        convention=Convention(nominal=4), unit=unit, misfit=1e-7 if unit else 0.2, splits=(made,) if unit else ()
    )
    return Observation(run=run, events=(event,), accumulation=accumulation)


def test_a_micro_batch_of_few_hard_tokens_makes_the_spike():
    made = NORMALIZATION.signature(split_run(ratio=18.0))
    assert made is not None
    assert (made.outcome, made.identity, made.events) == ("likely", True, ("e1",))
    assert made.evidence[1].observed == "160, 160, 160, 8"
    assert made.evidence[3].observed == made.evidence[3].expected


def test_it_is_not_blamed_where_it_does_not_make_the_height():
    assert NORMALIZATION.signature(split_run(ratio=1.5)) is None  # of a spike of 4, a tenth
    assert NORMALIZATION.signature(split_run(ratio=1.0)) is None
    assert NORMALIZATION.signature(split_run(ratio=18.0, unit=None)) is None
    assert (
        NORMALIZATION.signature(Observation(run=split_run(ratio=1.0).run, events=split_run(ratio=1.0).events)) is None
    )
