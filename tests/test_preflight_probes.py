"""The probes of `whyspike check`: each finds its fault, keeps quiet without it, and leaves the training as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

from whyspike import Training
from whyspike.case import PLAIN, cases
from whyspike.frozen import rng_state
from whyspike.preflight import all_probes, check, measure_setup

torch.set_num_threads(1)
Batch = Any


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(n: int = 64, *, by_class: bool = False) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (n,), generator=g)
    return TensorDataset(torch.randn(n, 6, generator=g), classes.sort().values if by_class else classes)


def make(model: nn.Module | None = None, loss_fn: Any = cross_entropy, loader: Any = None, **kw: Any) -> Training:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = kw.pop("optimizer", None) or torch.optim.AdamW(model.parameters(), lr=0.1)
    loader = DataLoader(data(), batch_size=16, shuffle=True) if loader is None else loader
    scheduler = kw.pop("scheduler", None)
    kw.setdefault("epochs", 10)
    return Training(
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        loader=loader,
        scheduler=scheduler(optimizer) if scheduler else None,
        **kw,
    )


def findings(training: Training) -> list[str]:
    return [f.cause for f in check(training).findings]


def notes(training: Training) -> list[str]:
    return [n.id for n in check(training).notes]


# --------------------------------------------------------------------------- faults


class Hidden(nn.Module):
    """Keeps a part of its state where state_dict() does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.seen = torch.zeros(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return self.layer(x - self.seen)


class Forgetful(torch.optim.SGD):
    """Keeps its velocity in a list of its own."""

    velocity: list[torch.Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        grads = [p.grad.clone() for g in self.param_groups for p in g["params"]]
        old = self.velocity or [torch.zeros_like(g) for g in grads]
        self.velocity = [0.9 * v + g for v, g in zip(old, grads, strict=True)]
        for p, v in zip(self.param_groups[0]["params"], self.velocity, strict=True):
            p -= 0.1 * v


def loud() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(8, 3)
    nn.init.normal_(head.weight, std=5.0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head)


def calls_backward(model: nn.Module, batch: Batch) -> torch.Tensor:
    loss = cross_entropy(model, batch)
    loss.backward(retain_graph=True)
    return loss


def adds_up() -> Callable[[nn.Module, Batch], torch.Tensor]:
    kept: list[torch.Tensor] = []

    def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
        kept.append(cross_entropy(model, batch))
        return torch.stack(kept).sum()

    return loss_fn


def in_half(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        scores = model(batch[0] * 1e5)
    return F.cross_entropy(scores.float(), batch[1])


def one_left() -> DataLoader[Any]:
    return DataLoader(data(65), batch_size=16, shuffle=True)


def lr(make_it: Callable[[torch.optim.Optimizer], Any]) -> dict[str, Any]:
    return {"scheduler": make_it}


SCHEDULES = torch.optim.lr_scheduler  # 40 updates: 10 epochs of 4
FAULTS: list[tuple[str, str, Callable[[], Training]]] = [
    ("a part that state_dict() lacks", "resume-without-state", lambda: make(Hidden())),
    (
        "an optimizer that keeps its state to itself",
        "resume-without-state",
        lambda: make(m := nn.Linear(6, 3), optimizer=Forgetful(m.parameters(), lr=0.1)),
    ),
    ("a loud head", "init-out-of-scale", lambda: make(loud())),
    ("loss_fn calls backward()", "grads-not-zeroed", lambda: make(loss_fn=calls_backward)),
    ("losses that are added up with their graphs", "grads-not-zeroed", lambda: make(loss_fn=adds_up())),
    ("softmax twice", "unstable-cross-entropy", lambda: make(nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)))),
    (
        "log of a softmax",
        "unstable-cross-entropy",
        lambda: make(loss_fn=lambda m, b: F.nll_loss(torch.log(m(b[0]).softmax(1)), b[1])),
    ),
    ("one sample left for BatchNorm", "bn-small-batch", lambda: make(loader=one_left())),
    ("float16 overflows", "low-precision-overflow", lambda: make(loss_fn=in_half)),
    ("sorted by class", "fixed-order", lambda: make(loader=DataLoader(data(by_class=True), batch_size=16))),
    ("a cosine past its end", "lr-restart", lambda: make(**lr(lambda o: SCHEDULES.CosineAnnealingLR(o, T_max=25)))),
    ("made for epochs", "lr-restart", lambda: make(**lr(lambda o: SCHEDULES.StepLR(o, step_size=3, gamma=0.1)))),
    ("too short", "lr-restart", lambda: make(**lr(lambda o: SCHEDULES.OneCycleLR(o, max_lr=0.1, total_steps=20)))),
    ("below zero", "lr-restart", lambda: make(**lr(lambda o: SCHEDULES.LambdaLR(o, lambda k: 1 - k / 20)))),
]


@pytest.mark.parametrize(("words", "cause", "build"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_found_and_nothing_else(words: str, cause: str, build: Callable[[], Training]) -> None:
    assert findings(build()) == [cause]


HEALTHY: list[tuple[str, Callable[[], Training]]] = [
    ("plain", make),
    ("accumulating", lambda: make(accumulate=2)),
    ("a list", lambda: make(loader=list(DataLoader(data(), batch_size=16)))),
    ("clipped", lambda: make(clip_grad_norm=1.0)),
    ("momentum", lambda: make(m := nn.Linear(6, 3), optimizer=torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))),
    ("no grad of a part", lambda: make(nn.Sequential(nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 3)))),
    ("a whole cosine", lambda: make(**lr(lambda o: SCHEDULES.CosineAnnealingLR(o, T_max=40)))),
    ("a whole cycle", lambda: make(**lr(lambda o: SCHEDULES.OneCycleLR(o, max_lr=0.1, total_steps=40)))),
    ("restarts", lambda: make(**lr(lambda o: SCHEDULES.CosineAnnealingWarmRestarts(o, T_0=10)))),
    ("on a plateau", lambda: make(**lr(SCHEDULES.ReduceLROnPlateau))),
    ("warm-up", lambda: make(**lr(lambda o: SCHEDULES.LinearLR(o, start_factor=0.01, total_iters=20)))),
    ("steps", lambda: make(**lr(lambda o: SCHEDULES.MultiStepLR(o, milestones=[20, 30])))),
    (
        "with replacement",
        lambda: make(loader=DataLoader(data(), batch_size=16, sampler=WeightedRandomSampler(torch.ones(64), 64))),
    ),
    ("in file order", lambda: make(loader=DataLoader(data(), batch_size=16))),
    ("bfloat16", lambda: make(loss_fn=lambda m, b: cross_entropy(m, (b[0].bfloat16().float(), b[1])))),
    ("a regression", lambda: make(nn.Linear(6, 1), lambda m, b: F.mse_loss(m(b[0])[:, 0], b[1].float()))),
    ("a scripted network", lambda: make(torch.jit.script(nn.Linear(6, 3)))),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("words", "build"), HEALTHY, ids=[h[0] for h in HEALTHY])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_ordinary_is_no_finding(words: str, build: Callable[[], Training]) -> None:
    assert findings(build()) == []


# --------------------------------------------------------------------------- notes


def test_what_is_meant_is_a_note() -> None:
    assert "lr-restart" in notes(make(**lr(lambda o: SCHEDULES.CosineAnnealingWarmRestarts(o, T_0=10))))
    assert "fixed-order" in notes(make(loader=DataLoader(data(), batch_size=16)))
    assert "fixed-order" not in notes(make())
    assert "bn-small-batch" in notes(make(loader=DataLoader(data(66), batch_size=16, shuffle=True)))
    assert "bn-small-batch" not in notes(make())
    slow = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.001), nn.Linear(8, 3))
    assert "train-eval-mode-mismatch" in notes(make(slow))
    assert "train-eval-mode-mismatch" not in notes(make())


def test_copies_in_a_batch() -> None:
    def loader() -> DataLoader[Any]:
        batch_sampler = [list(range(k, k + 16)) for k in range(0, 48, 16)] + [[*range(48, 60), 48, 49, 50, 51]]
        return DataLoader(data(), batch_sampler=[*batch_sampler] * 2)

    order = measure_setup(make(loader=loader())).order
    assert order is not None
    assert (order.same, order.copies, order.size) == (True, 0, 16)  # in every fourth batch: as with replacement
    long = [list(range(k, k + 8)) for k in range(0, 56, 8)] + [[56, 57, 58, 59, 56, 57, 58, 59]]
    order = measure_setup(make(loader=DataLoader(data(), batch_sampler=long))).order
    assert order is not None
    assert (order.copies, order.size) == (4, 8)
    assert "padded-duplicates" in notes(make(loader=DataLoader(data(), batch_sampler=long)))


def test_a_distributed_sampler_without_set_epoch_repeats_its_order() -> None:
    sampler = DistributedSampler(data(), num_replicas=2, rank=0, shuffle=True)
    order = measure_setup(make(loader=DataLoader(data(), batch_size=16, sampler=sampler))).order
    assert order is not None
    assert order.same
    assert not order.pure


def test_the_schedule_is_that_of_the_training() -> None:
    def build() -> Training:
        return make(accumulate=2, **lr(lambda o: SCHEDULES.StepLR(o, step_size=7, gamma=0.5)))

    training = build()
    expected = []
    for _ in range(10 * 2):
        expected.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.scheduler.step()
    assert list(measure_setup(build()).schedule) == pytest.approx(expected)


# --------------------------------------------------------------------------- nothing is left behind


class Counting:
    """A sampler that counts its epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Any:
        self.epochs += 1
        return iter(torch.randperm(64, generator=torch.Generator().manual_seed(self.epochs)).tolist())


def whole_state(training: Training) -> list[Any]:
    """All that a check may not change, as plain values."""
    generators = rng_state()
    return [
        {k: v.clone() for k, v in training.model.state_dict().items()},
        [m.training for m in training.model.modules()],
        [p.grad for p in training.model.parameters()],
        copy.deepcopy(training.optimizer.state_dict()),
        None if training.scheduler is None else copy.deepcopy(training.scheduler.state_dict()),
        generators["torch"],
        generators["python"],
    ]


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


@pytest.mark.parametrize("probe", all_probes(), ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("trained", [False, True])
def test_a_probe_leaves_everything_as_it_was(probe: Any, trained: bool) -> None:
    from whyspike.preflight.looked import Looked

    sampler = Counting()
    loader = DataLoader(data(), batch_size=15, sampler=sampler, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    training = make(loader=loader, accumulate=2, **lr(lambda o: SCHEDULES.CosineAnnealingLR(o, T_max=40)))
    if trained:
        cross_entropy(training.model, next(iter(loader))).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    before, epochs, own = whole_state(training), sampler.epochs, loader.generator.get_state()
    probe.measure(Looked(training))
    assert alike(before, whole_state(training))
    assert sampler.epochs == epochs
    assert torch.equal(loader.generator.get_state(), own)


@pytest.mark.parametrize("probe", all_probes(), ids=lambda p: type(p).__name__)
def test_a_probe_says_what_it_does_and_nothing_of_nothing(probe: Any) -> None:
    from whyspike.testing import empty_setup

    assert probe.words
    assert probe.words[0].islower()
    said = probe.say(empty_setup())
    assert said is None or said.id in ("exponent-unknown", "last-batch-unknown")


# --------------------------------------------------------------------------- on the cases


@pytest.mark.parametrize("name", ["init-out-of-scale", "sorted-file", "sum-reduction", "bn-small-batch"])
def test_a_sick_case_is_found_and_its_twin_is_left_alone(name: str) -> None:
    case = cases()[name]
    made = check(case.sick(100, PLAIN))  # type: ignore[arg-type]
    assert case.cause in [*(f.cause for f in made.findings), *(n.id for n in made.notes)]
    assert findings(case.healthy(100, PLAIN)) == []  # type: ignore[arg-type]
