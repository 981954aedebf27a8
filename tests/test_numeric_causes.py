"""The causes of numbers and networks: what they measure, and what they say of it and of their rivals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_of_causes import last_batch_run
from torch import nn

from whyspike.batchnorm import EvalGap, Normalised, by_size, compare, eval_gap, running_statistics
from whyspike.cause import Observation, find
from whyspike.firstloss import FirstLoss, first_loss
from whyspike.frozen import frozen
from whyspike.precision import FullPrecision
from whyspike.reproduction import Reproduction
from whyspike.scalewatch import ScaleWatch
from whyspike.testing import bare_observation
from whyspike.types import Mark

Batch = tuple[torch.Tensor, torch.Tensor]


def said(cause: str, seen: Observation) -> str | None:
    suspicion = find(cause).signature(seen)
    return None if suspicion is None else suspicion.outcome


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(n: int = 64, classes: int = 5) -> Batch:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=g), torch.randint(classes, (n,), generator=g)


def normed(momentum: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5)
    )


def state(model: nn.Module) -> list[Any]:
    return [
        *copy.deepcopy(list(model.state_dict().values())),
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------- batch statistics


def test_two_samples_come_out_as_plus_and_minus_one() -> None:
    norm = nn.BatchNorm1d(6, affine=False)
    assert torch.allclose(norm(data(2)[0]).abs(), torch.ones(2, 6), atol=1e-2)


def test_the_two_ways_are_those_of_the_layer() -> None:
    model, batch = normed(), data(8)
    model.get_submodule("3").p = 0.0  # type: ignore[assignment]
    before = state(model)
    found = compare(model, cross_entropy, batch)
    assert same(before, state(model))
    with frozen(model, train_mode=True):
        assert found.own == cross_entropy(model, batch).item()
    with frozen(model):
        assert found.running == pytest.approx(cross_entropy(model, batch).item(), rel=1e-6)
    assert found.n == 8


def test_running_statistics_leave_the_other_modes_alone() -> None:
    model = normed()
    with running_statistics(model):
        assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert all(m.training for m in model.modules())


def test_the_same_samples_in_batches_of_each_size() -> None:
    model = normed()
    found = by_size(model, cross_entropy, data(16), (1, 2, 4, 16))
    assert found[1] is None  # "Expected more than 1 value per channel"
    assert all(v is not None and v > 0 for n, v in found.items() if n > 1)


def test_a_gap_that_relearned_statistics_close() -> None:
    model, optimizer = normed(momentum=0.001), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    g = torch.Generator().manual_seed(3)
    draw = lambda: (8 + 10 * torch.randn(64, 6, generator=g), torch.randint(5, (64,), generator=g))  # noqa: E731
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model, draw()).backward()
        optimizer.step()
    before = state(model)
    found = eval_gap(model, cross_entropy, [draw() for _ in range(4)], [draw() for _ in range(16)], step=20)
    assert same(before, state(model))
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [0.001]
    assert found.ratio > 1.1
    assert found.removed > 0.9
    assert found.dropout is not None


def gap(own: float, running: float, relearned: float) -> EvalGap:
    return EvalGap(step=100, own=own, running=running, relearned=relearned)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([gap(1.0, 2.0, 1.0)] * 3, "likely"),
        ([gap(1.0, 1.1, 1.0)] * 3, None),  # a little is always there
        ([gap(1.0, 2.0, 1.9)] * 3, None),  # not the statistics
        ([gap(1.0, 2.0, 1.0), gap(1.0, 1.0, 1.0), gap(1.0, 1.0, 1.0)], None),  # once
        ([], None),
    ],
)
def test_only_a_gap_that_the_statistics_make_is_blamed(gaps: list[EvalGap], expected: str | None) -> None:
    assert said("train-eval-mode-mismatch", replace(bare_observation(), eval_gaps=gaps)) == expected


def test_a_batch_of_few_samples_is_blamed_where_its_own_statistics_make_the_loss() -> None:
    seen = last_batch_run(factor=3.0, alpha=0.0)
    high, alike = Normalised(n=2, own=3.0, running=1.0), Normalised(n=2, own=3.0, running=2.9)
    full = Normalised(n=32, own=3.0, running=1.0)
    assert said("bn-small-batch", replace(seen, normalised={"e1": high})) == "likely"
    assert said("bn-small-batch", replace(seen, normalised={"e1": alike})) is None
    assert said("bn-small-batch", replace(seen, normalised={"e1": full})) is None
    assert said("bn-small-batch", seen) is None


# --------------------------------------------------------------------------- the first loss


LOSSES = [
    ("cross-entropy", cross_entropy, 5, math.log(5)),
    ("a sum", lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), 5, 64 * math.log(5)),
    ("weighted", lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=torch.arange(1.0, 6)), 5, math.log(5)),
    ("masked", lambda m, b: F.cross_entropy(m(b[0]), b[1].where(b[1] > 0, -100)), 5, math.log(5)),
    ("a module", lambda m, b: nn.CrossEntropyLoss()(m(b[0]), b[1]), 5, math.log(5)),
    ("binary", lambda m, b: F.binary_cross_entropy_with_logits(m(b[0])[:, 0], (b[1] > 2).float()), 2, math.log(2)),
]


@pytest.mark.parametrize(("words", "loss_fn", "classes", "nothing"), LOSSES, ids=[x[0] for x in LOSSES])
def test_what_a_network_costs_that_says_nothing(words: str, loss_fn: Any, classes: int, nothing: float) -> None:
    model = nn.Linear(6, 5)
    found = first_loss(model, loss_fn, [data()])
    assert found is not None
    assert found.nothing == pytest.approx(nothing, rel=1e-5)
    assert found.loss == pytest.approx(loss_fn(model, data()).item(), rel=1e-6)
    assert found.classes == classes


def test_a_loss_without_logits_has_none() -> None:
    assert first_loss(nn.Linear(6, 1), lambda m, b: m(b[0]).square().mean(), [data()]) is None


def test_only_certainty_without_reason_is_out_of_scale() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    quiet = first_loss(model, cross_entropy, [data()])
    with torch.no_grad():
        model.weight.mul_(20)
    loud = first_loss(model, cross_entropy, [data()])
    assert quiet is not None
    assert not quiet.out_of_scale
    assert loud is not None
    assert loud.out_of_scale
    assert loud.excess > 2
    assert said("init-out-of-scale", replace(bare_observation(), first_loss=quiet)) is None
    assert said("init-out-of-scale", replace(bare_observation(), first_loss=loud)) == "likely"


def test_a_divided_loss_is_measured_in_nats() -> None:
    plain = FirstLoss(loss=5.0, nothing=math.log(10), spread=3.0, classes=10)
    divided = FirstLoss(loss=5.0 / 64, nothing=math.log(10) / 64, spread=3.0, classes=10)
    assert divided.excess == pytest.approx(plain.excess)


# --------------------------------------------------------------------------- what comes out again


def window(first: int = 0, step: int | None = None, size: float = 0.0, between: int | None = None) -> Reproduction:
    return Reproduction(
        first_step=first,
        n_steps=28,
        step=step,
        difference=size,
        largest=size,
        between=0.0 if between is None else size,
        between_step=between,
    )


GOOD = [window(0), window(100), window(200)]


@pytest.mark.parametrize(
    ("made", "corruption", "chance"),
    [
        (GOOD, None, None),
        ([*GOOD, window(300, 310, 0.5)], "likely", None),
        ([*GOOD, window(300, 310, 0.5), window(305, 310, 0.5)], "likely", None),  # two windows, one place
        ([*GOOD, window(300, 310, 0.5), window(400, 410, 0.5)], None, None),  # two places: code of the user's own
        ([*GOOD, window(300, 300, 0.5)], None, None),  # from the first step on: a state that is not complete
        ([*GOOD, window(300, 310, 1e-7)], None, None),  # rounding
        ([*GOOD, window(300, 310, 0.5, 310)], None, None),  # and not twice the same
        ([window(0), window(300, 310, 0.5)], None, None),  # too little that does come out
        ([window(k, k, 1e-7, k) for k in (0, 100, 200)], None, "likely"),
        ([window(0, 0, 1e-7, 0), *GOOD[1:]], None, None),
        ([window(k, k, 0.1, k) for k in (0, 100, 200)], None, None),  # it draws something that nobody kept
        ([], None, None),
    ],
)
def test_a_corruption_is_single_and_large_and_chance_is_small_and_everywhere(
    made: list[Reproduction], corruption: str | None, chance: str | None
) -> None:
    seen = replace(bare_observation(512), reproductions=made)
    assert said("silent-data-corruption", seen) == corruption
    assert said("nondeterminism", seen) == chance


def test_a_corruption_takes_the_spike_that_follows() -> None:
    from tests_of_causes import with_spikes

    seen = with_spikes(bare_observation(512), (312, 5.0, 1.0, None), (100, 5.0, 1.0, None), (330, 5.0, 1.0, None))
    suspicion = find("silent-data-corruption").signature(replace(seen, reproductions=[*GOOD, window(300, 310, 0.5)]))
    assert suspicion is not None
    assert suspicion.events == ("e1",)


# --------------------------------------------------------------------------- precision


@settings(max_examples=25, deadline=None)
@given(st.floats(1.0, 1e12), st.sampled_from([torch.float16, torch.bfloat16]))
def test_full_precision_is_what_the_step_is_without_autocast(size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 5))
    x, y = data()

    def narrowed() -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return F.cross_entropy(model(x * size), y)

    def by_hand() -> torch.Tensor:
        return F.cross_entropy((model(x * size).to(dtype) * 2).half().float() / 2, y)

    wide = F.cross_entropy(model(x * size), y)
    with FullPrecision():
        assert torch.equal(narrowed(), wide)
        assert torch.equal(by_hand(), wide)


def test_an_overflow_is_told_from_a_logarithm() -> None:
    from whyspike.firstbad import Located
    from whyspike.nonfinite import Origin
    from whyspike.numerics import Numerics
    from whyspike.types import Event

    event = Event(id="e1", kind="non-finite", step=128, last_step=255)

    def seen(dtype: str, exact: float | None) -> Observation:
        origin = Origin(place="forward", module="0", kind="Linear", operation="linear", value="inf", dtype=dtype)
        located = {"e1": Located(step=128, origin=origin, exact=exact)}
        return replace(bare_observation(events=(event,)), numerics=Numerics(located=located))

    half = find("low-precision-overflow").signature(seen("float16", 0.7))
    assert half is not None
    assert half.identity
    unknown = find("low-precision-overflow").signature(seen("float16", math.nan))
    assert unknown is not None
    assert not unknown.identity
    assert said("low-precision-overflow", seen("float32", 0.7)) is None
    assert said("unstable-cross-entropy", seen("float16", 0.7)) is None


# --------------------------------------------------------------------------- the scaler


def test_every_change_of_the_factor_is_noted_at_its_step() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    marks: list[tuple[int, float | None, float]] = []
    watch = ScaleWatch(scaler, lambda step, name, d: marks.append((step, d["before"], d["scale"])))  # type: ignore[arg-type]
    for step in range(8):
        optimizer.zero_grad()
        scaler.scale(model(torch.full((1, 2), math.inf if step == 4 else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.after_step(step)
    watch.read()
    assert marks == [(0, 8.0, 8.0), (2, 8.0, 16.0), (4, 16.0, 8.0), (7, 8.0, 16.0)]
    assert torch.isfinite(model.weight).all()


def scaled(*changes: tuple[int, float, float], steps: int = 4096) -> Observation:
    marks = tuple(Mark(s, "loss-scale", {"before": b, "scale": a, "interval": 2000}) for s, b, a in changes)
    seen = bare_observation(steps)
    return replace(seen, run=replace(seen.run, marks=marks))


@pytest.mark.parametrize(
    ("changes", "harm"),
    [
        ([(0, 65536.0, 65536.0)], None),
        ([(5, 65536.0, 32768.0), (2005, 32768.0, 65536.0), (2006, 65536.0, 32768.0)], "none"),
        ([(100 + k, 2.0 ** (16 - k), 2.0 ** (15 - k)) for k in range(20)], "damaging"),  # it falls and falls
        ([(s, 2.0 ** (s % 2 + 8), 2.0 ** ((s + 1) % 2 + 8)) for s in range(100, 300)], "damaging"),  # all the time
    ],
)
def test_a_skip_now_and_then_is_normal_and_a_cascade_is_not(
    changes: list[tuple[int, float, float]], harm: str | None
) -> None:
    suspicion = find("gradscaler-skip").signature(scaled(*changes))
    assert (None if suspicion is None else suspicion.harm) == harm


def test_the_sentences_name_what_was_seen() -> None:
    seen = scaled((5, 65536.0, 32768.0), (2005, 32768.0, 65536.0), (2006, 65536.0, 32768.0))
    assert "left out 2 of 4,096 updates" in find("gradscaler-skip").sentence(seen, ())
    first = FirstLoss(loss=5.0, nothing=math.log(10), spread=3.0, classes=10)
    low = replace(
        bare_observation(), first_loss=first, run=replace(bare_observation().run, loss=np.linspace(5, 1, 256))
    )
    assert "all 10 classes alike has 2.3" in find("init-out-of-scale").sentence(low, ())


def test_what_does_no_harm_is_said_after_what_matters() -> None:
    from whyspike.pipeline import _conclude
    from whyspike.suspect import suspect

    seen = scaled((5, 65536.0, 32768.0), (2005, 32768.0, 65536.0), (2006, 65536.0, 32768.0))
    made = _conclude(seen, suspect(seen), {}).answer
    assert (made.status, made.cause, made.harm) == ("healthy", "gradscaler-skip", "none")
    assert made.sentence.startswith("Nothing is wrong: over 4096 steps")
    assert "left out 2 of 4,096 updates" in made.sentence
    assert made.sentence.endswith("This is expected and does no harm.")


@pytest.mark.parametrize(("after", "verified"), [(0.5, True), (math.nan, False)])
def test_a_cure_of_a_training_that_ends_in_nan(after: float, verified: bool) -> None:
    from whyspike.cause import ScratchCure
    from whyspike.rerun import Trained
    from whyspike.types import Cure, Series
    from whyspike.verify import _judged

    def trained(final: float) -> Trained:
        empty = Series(np.array([], dtype=np.int64), np.array([]))
        return Trained(
            seed=0,
            words="",
            loss=np.ones(64),
            n_samples=np.full(64, 8),
            batch_size=8,
            state=empty,
            final_probe=final,
        )

    cure = ScratchCure(cure=Cure(words="so", code={"torch": "so"}, applicability="safe"))
    assert _judged(cure, [trained(math.nan)], [trained(after)]).verified is verified
