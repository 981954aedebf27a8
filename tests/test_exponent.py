"""The exponent probe against losses whose law is known by construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import default_collate

from whyspike.errors import BadTraining
from whyspike.exponent import ExponentUndefined, measure, measure_from_dataset, solve

torch.set_num_threads(1)

CLASSES, TOKENS, CELLS = 5, 12, 16


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, CLASSES))
    model(torch.randn(64, 6) * 3)  # running statistics that differ from a batch's own
    return model


@pytest.fixture
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, generator=g), torch.randint(CLASSES, (32,), generator=g)


def mean_ce(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sum_ce(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


@pytest.mark.parametrize(
    ("loss_fn", "alpha"),
    [
        (mean_ce, 0.0),
        (lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], CLASSES).float()), 0.0),
        (lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], CLASSES).float()).sqrt(), 0.0),
        (sum_ce, 1.0),
        (lambda m, b: mean_ce(m, b) / len(b[1]), -1.0),
        (lambda m, b: 32 * mean_ce(m, b) / len(b[1]), -1.0),
        (lambda m, b: sum_ce(m, b) / math.sqrt(len(b[1])), 0.5),
        (lambda m, b: -mean_ce(m, b), 0.0),
        (lambda m, b: -sum_ce(m, b), 1.0),
    ],
)
def test_reductions_with_batchnorm_and_dropout(net: nn.Module, labelled: Any, loss_fn: Any, alpha: float) -> None:
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = measure(net, loss_fn, labelled)
    assert found.alpha == pytest.approx(alpha, abs=0.01)
    assert found.gamma == pytest.approx(0, abs=0.02)
    assert found.permutation < 1e-5
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def boxes(empty: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 16 cells per image (32, 16, 6) and their classes, 0 where there is no box."""
    g = torch.Generator().manual_seed(seed)
    classes = torch.randint(1, CLASSES, (32, CELLS), generator=g) * (torch.rand(32, CELLS, generator=g) < 0.15)
    classes[torch.rand(32, generator=g) < empty] = 0
    return torch.randn(32, CELLS, 6, generator=g), classes


def box_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    total = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum")
    return total / (batch[1] > 0).sum().clamp(min=1)


@pytest.mark.parametrize("empty", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("again", [False, True])
def test_boxes_as_divisor_also_with_empty_images(empty: float, again: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, CLASSES)
    for seed in range(5):
        batch = boxes(empty, seed)
        assert int((batch[1] > 0).sum()) > 0
        found = measure(model, lambda m, b: box_loss(m, b) / (len(b[0]) if again else 1), batch)
        assert found.alpha == pytest.approx(-1.0 if again else 0.0, abs=0.01)


def text(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (32, TOKENS), generator=g)
    lengths = torch.randint(2, TOKENS + 1, (32,), generator=g)
    labels[torch.arange(TOKENS) >= lengths[:, None]] = -100
    return {"x": torch.randn(32, TOKENS, 6, generator=g) * lengths[:, None, None], "labels": labels}


def token_mean(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def test_token_mean_with_ignored_labels() -> None:
    torch.manual_seed(0)
    found = measure(nn.Linear(6, CLASSES), token_mean, text())
    assert found.alpha == pytest.approx(0, abs=0.01)
    assert found.permutation < 1e-5


@pytest.mark.parametrize("micro", [4, 8])
def test_mean_of_means_is_seen_by_the_permutation_alone(micro: int) -> None:
    def mean_of_means(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pieces = [{k: v[i : i + micro] for k, v in batch.items()} for i in range(0, len(batch["x"]), micro)]
        return torch.stack([token_mean(model, p) for p in pieces]).mean()

    torch.manual_seed(0)
    found = measure(nn.Linear(6, CLASSES), mean_of_means, text())
    assert abs(found.alpha) < 0.05
    assert found.permutation > 1e-3


def pairs(n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, 6, generator=g)
    return x, x + 0.1 * torch.randn(n, 6, generator=g)


def info_nce(model: nn.Module, batch: Any) -> torch.Tensor:
    a, b = (F.normalize(model(x), dim=1) for x in batch)
    return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_contrastive_losses_grow_with_the_logarithm(n: int, trained: bool, again: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 8)
    if not trained:
        nn.init.zeros_(model.weight)  # the loss at its start: log n
    found = measure(model, lambda m, b: info_nce(m, b) / (len(b[0]) if again else 1), pairs(n))
    assert found.alpha == pytest.approx(-1 if again else 0, abs=0.01)
    assert found.gamma == pytest.approx(1 / (n // 4) if again else 1, rel=0.02)
    assert found.permutation < 1e-5


class Speech(torch.utils.data.Dataset):
    """Frames (T, 6) and a target of another length each, as CTC has them."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(i)
        target = torch.randint(1, CLASSES, (int(torch.randint(1, 5, (1,), generator=g)),), generator=g)
        return torch.randn(20, 6, generator=g) + 0.1 * torch.randn(1), target  # augmented: another value each time


def concatenated(items: list[Any]) -> dict[str, torch.Tensor]:
    return {
        "frames": torch.stack([x for x, _ in items]),
        "targets": torch.cat([y for _, y in items]),
        "lengths": torch.tensor([len(y) for _, y in items]),
    }


@pytest.mark.parametrize(("how", "alpha"), [("mean", 0.0), ("sum", 1.0), ("mean/B", -1.0)])
def test_ctc_with_concatenated_targets(how: str, alpha: float) -> None:
    def loss_fn(model: nn.Module, b: dict[str, torch.Tensor]) -> torch.Tensor:
        log_p = model(b["frames"]).log_softmax(-1).transpose(0, 1)
        n = len(b["lengths"])
        frames = torch.full((n,), 20)
        loss = F.ctc_loss(log_p, b["targets"], frames, b["lengths"], reduction=how.split("/")[0])
        return loss / n if "/" in how else loss

    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = measure_from_dataset(nn.Linear(6, CLASSES), loss_fn, Speech(), concatenated, range(32))
    assert found.alpha == pytest.approx(alpha, abs=0.01)
    assert found.permutation < 1e-5
    torch.set_rng_state(state)
    model = nn.Linear(6, CLASSES)
    after_model = torch.get_rng_state()
    measure_from_dataset(model, loss_fn, Speech(), concatenated, range(8))
    assert torch.equal(torch.get_rng_state(), after_model)


def test_detection_targets_as_a_list_per_image() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        images, targets = batch
        n = sum(len(t["boxes"]) for t in targets)
        miss = [
            F.l1_loss(model(x).expand(len(t["boxes"]), -1), t["boxes"], reduction="sum")
            for x, t in zip(images, targets, strict=True)
        ]
        return torch.stack(miss).sum() / max(1, n) / len(images)

    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(6, generator=g), {"boxes": torch.rand(i % 3, 4, generator=g)}) for i in range(32)]
    found = measure_from_dataset(
        nn.Linear(6, 4), loss_fn, data, lambda items: tuple(zip(*items, strict=True)), range(32)
    )
    assert found.alpha == pytest.approx(-1, abs=0.01)
    found = measure(nn.Linear(6, 4), loss_fn, (torch.stack([x for x, _ in data]), [t for _, t in data]))
    assert found.alpha == pytest.approx(-1, abs=0.01)


def test_collated_rows_and_taken_rows_agree(net: nn.Module, labelled: Any) -> None:
    data = list(zip(*labelled, strict=True))
    a = measure(net, sum_ce, labelled)
    b = measure_from_dataset(net, sum_ce, data, default_collate, range(32))
    assert a.losses == pytest.approx(b.losses)


def test_a_loss_that_draws_random_numbers(net: nn.Module, labelled: Any) -> None:
    def noisy(reduce: str) -> Callable[..., torch.Tensor]:
        def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
            return F.mse_loss(
                model(batch[0] + 0.3 * torch.randn_like(batch[0])),
                F.one_hot(batch[1], CLASSES).float(),
                reduction=reduce,
            )

        return loss_fn

    assert measure(net, noisy("mean"), labelled).alpha == pytest.approx(0, abs=0.15)
    assert measure(net, noisy("sum"), labelled).alpha == pytest.approx(1, abs=0.15)
    assert measure(net, noisy("sum"), labelled) == measure(net, noisy("sum"), labelled)


def test_a_weight_penalty_does_not_hide_a_sum(net: nn.Module, labelled: Any) -> None:
    def penalty(m: nn.Module) -> torch.Tensor:
        return 0.5 * torch.stack([p.square().sum() for p in m.parameters()]).sum()

    assert measure(net, lambda m, b: sum_ce(m, b) + penalty(m), labelled).alpha == pytest.approx(1, abs=0.02)
    assert measure(net, lambda m, b: mean_ce(m, b) / len(b[1]) + penalty(m), labelled).alpha == pytest.approx(
        -1, abs=0.02
    )
    assert measure(net, lambda m, b: mean_ce(m, b) + penalty(m), labelled).alpha == pytest.approx(0, abs=0.02)


def test_never_more_rows_than_the_batch(net: nn.Module, labelled: Any) -> None:
    seen = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(len(batch[0]))
        return mean_ce(model, batch)

    measure(net, loss_fn, labelled)
    assert max(seen) == 32


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_batches(net: nn.Module, labelled: Any, n: int) -> None:
    assert measure(net, sum_ce, tuple(x[:n] for x in labelled)).alpha == pytest.approx(1, abs=0.01)


def test_half_precision(net: nn.Module, labelled: Any) -> None:
    found = measure(net, lambda m, b: sum_ce(m, b).bfloat16(), labelled)
    assert found.alpha == pytest.approx(1, abs=0.05)


@settings(deadline=None, max_examples=200)
@given(
    alpha=st.sampled_from([-1.0, 0.0, 1.0]),
    l1=st.floats(1e-3, 1e3),
    gamma=st.floats(0, 2) | st.just(0.0),
    negative=st.booleans(),
)
def test_the_closed_form_finds_what_was_put_in(alpha: float, l1: float, gamma: float, negative: bool) -> None:
    sign = -1 if negative else 1
    losses = [sign * n**alpha * (l1 + gamma * math.log(n)) for n in (1, 2, 4)]
    found, found_gamma = solve(*losses, tolerance=1e-12)
    other = alpha + math.log2((l1 + 2 * gamma * math.log(2)) / l1)  # the law's other root
    distance = min(abs(other - k) for k in (-1, 0, 1))
    if distance > 0.15:  # otherwise both roots are near a whole number, and the one with gamma >= 0 is preferred
        assert found == pytest.approx(alpha, abs=1e-4)
        assert found_gamma == pytest.approx(sign * gamma, abs=1e-3 * max(1, gamma, l1))
    assert losses[1] == pytest.approx(2**found * (losses[0] + found_gamma * math.log(2)), rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((0.0, 0.0, 0.0), "other than zero"),
        ((1.0, -1.0, 1.0), "one sign"),
        ((1.0, math.nan, 1.0), "finite"),
        ((1.0, math.inf, 1.0), "finite"),
        ((1.0, 0.5, 9.0), "no power"),
    ],
)
def test_what_cannot_be_measured_is_said(losses: tuple[float, float, float], says: str) -> None:
    with pytest.raises(ExponentUndefined, match=says):
        solve(*losses)


def test_small_differences_are_noise_where_the_losses_are_not_exact() -> None:
    losses = (1.0, 0.99, 0.985)  # taken for exact: .98 and a part .02 that halves with every doubling
    assert solve(*losses)[0] == pytest.approx(-1, abs=0.01)
    assert solve(*losses, exact=False) == (pytest.approx(math.log2(0.985) / 2), 0.0)


def test_a_loss_that_is_no_scalar(net: nn.Module, labelled: Any) -> None:
    with pytest.raises(BadTraining, match=r"tensor of shape \(\d+,\).*return loss.mean"):
        measure(net, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), labelled)
    with pytest.raises(BadTraining, match="raised TypeError"):
        measure(net, lambda m: m, labelled)  # type: ignore[arg-type]


def test_losses_are_those_of_the_copies(net: nn.Module) -> None:
    """Against the slow obvious version: quarter, concatenate, evaluate."""
    x = torch.randn(32, 6)
    y = torch.ones(32, dtype=torch.long)  # equal counts in all rows: the first quarter is taken
    found = measure(net, sum_ce, (x, y))
    net.eval()
    obvious = [float(sum_ce(net, (torch.cat([x[:8]] * k), torch.cat([y[:8]] * k))).detach()) for k in (1, 2, 4)]
    assert np.allclose(found.losses, obvious)
