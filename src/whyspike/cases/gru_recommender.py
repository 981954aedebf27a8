"""A next-item recommender whose training loss is best in the first quarter of every epoch.

A one-layer GRU over the last 10 items, cross-entropy from logits and HR@10, Adam, evaluated four times an epoch; the
numbers of the training are means over the quarter. The data are reshuffled every epoch, without replacement. That is
the fault, as far as there is one: a sample that comes up early in an epoch was seen not long ago. The healthy twin
draws with replacement, which has no epochs to remember.

The sessions are synthetic (`_sessions.py`). To train on your own, put them into `sessions.csv` (user, item, time) and
run `whyspike prove examples/own_sessions.py:training`, or call `training_on(read_interactions("my.csv"))`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from whyspike.case import PLAIN, Case, Vary
from whyspike.cases._sessions import Interaction, Windows, read_interactions, sessions, sessions_of, windows
from whyspike.training import Training

__all__ = ["CASE", "read_interactions", "training", "training_on"]

ITEMS = 500
VALIDATION = 2500  # windows of other sessions


class Sessions(Dataset):
    """Windows as (items [LAST], target []); several at once as torch's fetcher asks for them."""

    def __init__(self, found: Windows) -> None:
        self.items, self.target = torch.as_tensor(found.items), torch.as_tensor(found.target)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.items[i], self.target[i]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        where = torch.as_tensor(rows)
        return list(zip(self.items[where].unbind(), self.target[where].unbind(), strict=True))


def stack(rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """A batch: items (B, LAST) and targets (B,)."""
    return [torch.stack([items for items, _ in rows]), torch.stack([target for _, target in rows])]


class Recommender(nn.Module):
    """Embedding, one GRU layer, and a score for every item from its last state."""

    def __init__(self, n_items: int, embedding: int, hidden: int, *, norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, embedding, padding_idx=0)
        self.gru = nn.GRU(embedding, hidden, batch_first=True)
        self.norm = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.score = nn.Linear(hidden, n_items)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Items (B, LAST) to logits (B, n_items)."""
        _, last = self.gru(self.embedding(items))
        return self.score(self.norm(last[0]))


def hits(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """HR@10: whether the target is among the ten highest scores, (B,)."""
    return ((logits > logits.gather(1, target[:, None])).sum(dim=1) < 10).float()  # cheaper than a top ten


class Meter:
    """Means over the training batches since they were last read, as the asker kept them."""

    def __init__(self) -> None:
        self.loss, self.hits, self.n = 0.0, 0.0, 0

    def add(self, loss: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> None:
        self.loss += float(loss.detach()) * len(target)
        self.hits += float(hits(logits.detach(), target).sum())
        self.n += len(target)

    def read(self) -> dict[str, float]:
        found = {"train_loss": self.loss / self.n, "train_hr10": self.hits / self.n} if self.n else {}
        self.loss, self.hits, self.n = 0.0, 0.0, 0
        return found


def training(
    seed: int = 0,
    vary: Vary = PLAIN,
    *,
    n: int = 5120,
    batch_size: int = 64,
    lr: float = 0.01,
    epochs: int = 20,
    hidden: int = 48,
    n_items: int = ITEMS,
    rest: int = 0,
    replacement: bool = False,
    **how: Any,
) -> Training:
    """The recommender on synthetic sessions.

    Args:
        n: windows to train on, rounded to whole batches.
        rest: windows more than that: the samples of a last batch that is smaller than the others.
    """
    size = vary.of(batch_size, vary.batch_size)
    n = max(8, round(n * vary.n / size)) * size + rest
    found = windows(sessions(n + VALIDATION, n_items, seed), n_items, n + VALIDATION)
    return _training(
        Windows(found.items[:n], found.target[:n], n_items),
        Windows(found.items[n:], found.target[n:], n_items),
        seed=seed,
        batch_size=size,
        lr=lr * vary.lr,
        epochs=epochs,
        hidden=vary.of(hidden, vary.width),
        replacement=replacement,
        **how,
    )


def training_on(
    interactions: Iterable[Interaction],
    seed: int = 0,
    *,
    batch_size: int = 64,
    lr: float = 0.01,
    epochs: int = 20,
    hidden: int = 48,
    replacement: bool = False,
    **how: Any,
) -> Training:
    """The recommender on your own interactions: the windows of the last fifth of the sessions are for validation.

    Args:
        interactions: as `read_interactions` reads them: (user, item, time).
    """
    found, names = sessions_of(interactions)
    cut = max(1, len(found) * 4 // 5)
    return _training(
        windows(found[:cut], len(names)),
        windows(found[cut:] or found[:cut], len(names)),
        seed=seed,
        batch_size=batch_size,
        lr=lr,
        epochs=epochs,
        hidden=hidden,
        replacement=replacement,
        **how,
    )


def _training(
    train: Windows,
    validation: Windows,
    *,
    seed: int,
    batch_size: int,
    lr: float,
    epochs: int,
    hidden: int,
    replacement: bool,
    norm: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    clip_grad_norm: float | None = None,
) -> Training:
    torch.manual_seed(seed)
    model = Recommender(train.n_items, hidden // 2, hidden, norm=norm)
    meter = Meter()
    data, held_out = Sessions(train), Sessions(validation)
    draw = torch.Generator().manual_seed(seed)

    def loss_fn(model: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        items, target = batch
        logits = model(items)
        loss = F.cross_entropy(logits, target)
        if model.training and torch.is_grad_enabled():
            meter.add(loss, logits, target)
        return loss

    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            logits = model(held_out.items)
            found = {
                "val_loss": float(F.cross_entropy(logits, held_out.target)),
                "val_hr10": float(hits(logits, held_out.target).mean()),
            }
        model.train()
        return meter.read() | found

    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=lr, betas=betas),
        loss_fn=loss_fn,
        loader=DataLoader(
            data,
            batch_size=batch_size,
            sampler=RandomSampler(data, replacement=replacement, generator=draw),
            collate_fn=stack,
        ),
        epochs=epochs,
        clip_grad_norm=clip_grad_norm,
        evaluate=evaluate,
        evaluate_every=-(-len(data) // (4 * batch_size)),
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(seed, vary, replacement=True)


CASE = Case(
    words="a GRU recommender, reshuffled every epoch: its training metrics are best in the first quarter of each",
    cause="epochal-sawtooth",
    also_true=("memorization-step",),  # in the first epochs every visit teaches a sample more than is forgotten
    sick=sick,
    healthy=healthy,
)
