"""Calibrates the batch-size exponent probe (`whyspike.exponent`): 60 batches of 32 of every kind of loss.

    python benchmarks/exponent.py [--batches 60]

Two tables. First, what the probe finds for losses whose law is known by construction; "ok" is the share of batches
with an alpha wrong by less than .25. Second, the detector of the case double-averaged-loss: the loss it reports at
the last batch over the honest one (one division), for last batches of 1 to 24 images. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from whyspike.exponent import ExponentUndefined, measure, measure_from_dataset
from whyspike.types import Exponent

B, FEATURES, CLASSES, CELLS, TOKENS = 32, 6, 5, 16, 24
Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table: `probe(seed)` measures one batch."""

    words: str
    alpha: float
    probe: Callable[[int], Exponent]
    gamma: float = 0.0


def classifier(*, batch_norm: bool = False, dropout: float = 0.0, width: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(FEATURES, 16)]
    layers += [nn.BatchNorm1d(16)] if batch_norm else []
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, width)]
    model = nn.Sequential(*layers)
    model(2 * torch.randn(256, FEATURES))
    return model


def vectors(seed: int, *, heavy: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(1.5, (B, FEATURES)) if heavy else rng.normal(size=(B, FEATURES))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(rng.integers(CLASSES, size=B))


def boxes(seed: int, empty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the cells of 32 images and their classes, 0 for no box; at least one box in the batch."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((B, CELLS), np.int64)
    while not classes.any():
        classes = rng.integers(1, CLASSES, (B, CELLS)) * (rng.random((B, CELLS)) < 0.15)
        classes[rng.random(B) < empty] = 0
    return torch.tensor(rng.normal(size=(B, CELLS, FEATURES)), dtype=torch.float32), torch.tensor(classes)


def text(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token features and labels of 32 sequences; log-normal lengths, -100 behind the end. Long ones are harder."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(2, 0.8, B)).astype(int), 1, TOKENS)
    labels = rng.integers(CLASSES, size=(B, TOKENS))
    labels[np.arange(TOKENS) >= lengths[:, None]] = -100
    x = rng.normal(size=(B, TOKENS, FEATURES)) * (lengths / 2)[:, None, None]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def speech(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    return [
        (
            torch.tensor(rng.normal(size=(20, FEATURES)), dtype=torch.float32),
            torch.tensor(rng.integers(1, CLASSES, rng.integers(1, 7))),
        )
        for _ in range(B)
    ]


def pairs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, FEATURES))
    return tuple(torch.tensor(v, dtype=torch.float32) for v in (x, x + 0.2 * rng.normal(size=x.shape)))  # type: ignore[return-value]


# --------------------------------------------------------------------------- losses


def ce(reduction: str = "mean") -> Loss:
    return lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction)


def mse(m: nn.Module, b: Any) -> torch.Tensor:
    return F.mse_loss(m(b[0]), F.one_hot(b[1], CLASSES).float())


def box(m: nn.Module, b: Any) -> torch.Tensor:
    total = F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten(), reduction="sum")
    return total / (b[1] > 0).sum().clamp(min=1)


def tokens(m: nn.Module, b: Any) -> torch.Tensor:
    return F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten(), ignore_index=-100)


def mean_of_means(chunks: int) -> Loss:
    """Gradient accumulation as it was in many trainers: the mean over micro-batches of their token means."""

    def loss(m: nn.Module, b: Any) -> torch.Tensor:
        pieces = zip(*(t.chunk(chunks) for t in b), strict=True)
        return torch.stack([tokens(m, p) for p in pieces]).mean()

    return loss


def ctc(reduction: str) -> Loss:
    def loss(m: nn.Module, b: Any) -> torch.Tensor:
        frames, targets, lengths = b
        log_p = m(frames).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_p, targets, torch.full((len(frames),), 20), lengths, reduction=reduction)

    return loss


def concatenated(items: list[Any]) -> Any:
    return (
        torch.stack([x for x, _ in items]),
        torch.cat([y for _, y in items]),
        torch.tensor([len(y) for _, y in items]),
    )


def info_nce(m: nn.Module, b: Any) -> torch.Tensor:
    one, two = (F.normalize(m(x), dim=1) for x in b)
    return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))


def per_sample_again(loss: Loss, factor: float = 1.0) -> Loss:
    return lambda m, b: factor * loss(m, b) / len(b[0])


def contrastive_model(steps: int) -> nn.Module:
    model = classifier(width=8)
    if steps == 0:
        nn.init.normal_(model[-1].weight, std=1e-3)  # type: ignore[arg-type, index]
        nn.init.ones_(model[-1].bias)  # type: ignore[arg-type, index]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        info_nce(model, pairs(10_000 + step)).backward()
        optimizer.step()
    return model


# --------------------------------------------------------------------------- the table


def rows() -> Iterator[Row]:
    plain, normed = classifier(), classifier(batch_norm=True, dropout=0.5)
    start, trained = contrastive_model(0), contrastive_model(300)

    def on(model: nn.Module, loss: Loss, make: Callable[[int], Any]) -> Callable[[int], Exponent]:
        return lambda seed: measure(model, loss, make(seed))

    def heavy(seed: int) -> Any:
        return vectors(seed, heavy=True)

    def root(m: nn.Module, b: Any) -> torch.Tensor:
        return mse(m, b).sqrt()

    yield Row("cross-entropy, mean", 0, on(plain, ce(), vectors))
    yield Row("MSE, mean", 0, on(plain, mse, vectors))
    yield Row("MSE, mean, inputs t(1.5)", 0, on(plain, mse, heavy))
    yield Row("root of MSE", 0, on(plain, root, vectors))
    yield Row("mean, BatchNorm and dropout", 0, on(normed, ce(), vectors))
    yield Row("sum", 1, on(plain, ce("sum"), vectors))
    yield Row("sum, BatchNorm and dropout", 1, on(normed, ce("sum"), vectors))
    yield Row("mean / B", -1, on(plain, per_sample_again(ce()), vectors))
    yield Row("mean / B, BatchNorm and dropout", -1, on(normed, per_sample_again(ce()), vectors))
    yield Row("sum / sqrt(B)", 0.5, on(plain, lambda m, b: ce("sum")(m, b) / math.sqrt(len(b[0])), vectors))
    for share in (0.0, 0.5, 0.9):
        words = f", {share:.0%} empty images" if share else ""

        def images(seed: int, share: float = share) -> Any:
            return boxes(seed, share)

        yield Row(f"sum / n_boxes{words}", 0, on(plain, box, images))
        yield Row(f"(sum / n_boxes) / B{words}", -1, on(plain, per_sample_again(box), images))
    yield Row("32 (sum / n_boxes) / B", -1, on(plain, per_sample_again(box, 32), lambda seed: boxes(seed, 0)))
    yield Row("token mean, ignore_index", 0, on(plain, tokens, text))
    yield Row("mean of 4 micro-batch means", 0, on(plain, mean_of_means(4), text))
    yield Row("mean of 8 micro-batch means", 0, on(plain, mean_of_means(8), text))
    for words, alpha, loss in (
        ("mean", 0, ctc("mean")),
        ("sum", 1, ctc("sum")),
        ("mean / B", -1, per_sample_again(ctc("mean"))),
    ):

        def through_collate(seed: int, loss: Loss = loss) -> Exponent:
            return measure_from_dataset(plain, loss, speech(seed), concatenated, range(B))

        yield Row(f"CTC {words}, targets concatenated", alpha, through_collate)
    for words, model in (("at its start", start), ("trained", trained)):
        yield Row(f"InfoNCE, {words}", 0, on(model, info_nce, pairs), gamma=1)
        # gamma holds the 1/B of the quarter batch that is duplicated.
        yield Row(f"InfoNCE / B, {words}", -1, on(model, per_sample_again(info_nce), pairs), gamma=4 / B)


def table(n_batches: int) -> bool:
    print(f"{'loss':<40} {'true':>5} {'alpha':>7} {'sd':>6} {'ok':>5} {'gamma':>7} {'true':>6} {'permutation':>12}")
    good = True
    for row in rows():
        found = []
        failed = 0
        for seed in range(n_batches):
            try:
                found.append(row.probe(seed))
            except ExponentUndefined:
                failed += 1
        alpha = np.array([f.alpha for f in found])
        ok = float(np.sum(np.abs(alpha - row.alpha) < 0.25)) / n_batches
        good &= ok == 1
        print(
            f"{row.words:<40} {row.alpha:5.1f} {np.mean(alpha):+7.3f} {np.std(alpha):6.3f} {ok:5.2f} "
            f"{np.median([f.gamma for f in found]):7.3f} {row.gamma:6.3f} "
            f"{np.median([f.permutation for f in found]):12.1e}" + (f"  {failed} undefined" if failed else "")
        )
    return good


def slope_of(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def detector(epochs: int = 2) -> bool:
    """The sick detector trains; at every last batch its loss is held beside the honest loss of the same batch.

    Both are in units of their value on full batches, so that the honest loss stays 1 and the reported one is B / b.
    """
    from whyspike.cases.double_averaged_loss import multibox_loss, multibox_loss_averaged_twice, training

    sizes = (1, 2, 4, 8, 16, 24)
    print(f"\n{'last batch b':<40}" + "".join(f"{b:>8}" for b in sizes) + f"{'slope':>8}")
    same, others = [], []
    for b in sizes:
        # The learning rate of the honest loss: training stays stable and the network is that of an ordinary run.
        t = training(twice=False, left=b, epochs=epochs)
        exact, typical = [], []
        for _ in range(epochs):
            full: list[float] = []
            for batch in t.loader:
                reported = float(multibox_loss_averaged_twice(t.model, batch).detach())
                loss = multibox_loss(t.model, batch)
                if len(batch[0]) == b:
                    exact.append(reported / float(loss.detach()) * B)
                    typical.append(reported / float(np.median(full[-16:])))
                full.append(reported)
                t.optimizer.zero_grad()
                loss.backward()
                t.optimizer.step()
        same.append(float(np.median(exact)))
        others.append(float(np.median(typical)))
    print(f"{'predicted, B / b':<40}" + "".join(f"{B / b:8.2f}" for b in sizes) + f"{-1:8.2f}")
    exact_slope = slope_of(sizes, same)
    print(f"{'reported / honest loss, same batch':<40}" + "".join(f"{v:8.2f}" for v in same) + f"{exact_slope:8.3f}")
    print(
        f"{'reported / median of the 16 before':<40}"
        + "".join(f"{v:8.2f}" for v in others)
        + f"{slope_of(sizes, others):8.3f}"
    )
    return abs(exact_slope + 1) <= 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description="Calibrates the batch-size exponent probe.")
    parser.add_argument("--batches", type=int, default=60, help="batches per kind of loss")
    torch.set_num_threads(1)
    right = table(parser.parse_args().batches)
    straight = detector()
    print(f"\nevery batch of every loss within .25: {'yes' if right else 'no'}")
    print(f"slope of reported over honest loss -1.00 +- .02: {'yes' if straight else 'no'}")
    return 0 if right and straight else 1


if __name__ == "__main__":
    raise SystemExit(main())
