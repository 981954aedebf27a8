"""Which column of a log is the step, the training loss, the epoch, the learning rate: by what people call them.

Nothing is guessed silently: what was taken is said with what else could have been meant, and `--loss NAME` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.form import plain
from whyspike.logs.table import Column, Table

# Names by their words in lower case, the surest first. Counters of samples, tokens and seconds are none of them.
STEPS = (
    "step", "global step", "trainer global step", "train global step", "iteration", "iter", "iters", "iterations", "it",
    "global iteration", "global iter", "train step", "train iteration", "num updates", "update", "updates", "n iter",
    "cur iter", "niter", "optimizer step", "steps", "i iter", "batch", "global batch", "num steps",
)  # fmt: skip
EPOCHS = ("epoch", "epochs", "train epoch", "trainer epoch", "current epoch", "epoch num")
RATES = ("lr", "learning rate", "train lr", "train learning rate", "optim lr", "lr 0", "lr pg 0", "lr pg0", "base lr")
ASIDE = frozenset(
    [
        "val",
        "valid",
        "validation",
        "eval",
        "evaluation",
        "test",
        "dev",
        "best",
        "min",
        "max",
        "std",
        "var",
        "count",
        "grad",
        "norm",
        "time",
        "sec",
        "seconds",
        "ms",
        "scale",
        "tokens",
        "per",
        "ema",
        "avg",
        "total_time",
        "runtime",
        "acc",
        "accuracy",
    ]
)  # words that say: this is not the training loss of a step
_UNIT = re.compile(r"[(\[{].*?[)\]}]")
LOSSES = frozenset({"loss", "losses", "nll", "xent", "ce", "crossentropy", "lossf", "ppl", "perplexity", "mse", "elbo"})
# `value`: TensorBoard exports a tag as Wall time, Step, Value
EXACT = {
    "loss": 100, "train loss": 98, "training loss": 97, "loss train": 96, "lm loss": 95, "loss total": 95,
    "total loss": 95, "train total loss": 95, "loss step": 94, "train loss step": 99, "batch loss": 93,
    "train lm loss": 92, "train batch loss": 92, "train cross entropy loss": 91, "train": 60, "l": 40, "value": 30,
}  # fmt: skip


@dataclass(frozen=True)
class Roles:
    """The columns by their part; None where the log has none. `others` could have been meant for the loss."""

    loss: str
    step: str | None
    epoch: str | None
    lr: str | None
    others: tuple[str, ...]


def words(name: str) -> str:
    """A name as words: `trainer/globalStep` is "trainer global step"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[^a-z0-9]+", " ", apart.lower()).split())


def choose(table: Table, source: str, asked: str | None = None) -> Roles:
    """The columns of a table by their part.

    Raises:
        UnreadableRun: there is no loss among them, or none of the name that was asked for.
    """
    found = table.columns
    fixed = {part: name for part, name in table.roles.items() if name in found}  # a format need not write all it has
    step = fixed.get("step") or _named(found, STEPS, _counts)
    epoch = fixed.get("epoch") or _named(found, EPOCHS, _counts)
    lr = fixed.get("lr") or _named(found, RATES) or _rate(found)
    rest = [name for name in found if name not in (step, epoch, lr)]
    if asked is not None:
        return Roles(_asked(asked, rest, source), step, epoch, lr, ())
    if "loss" in fixed:
        others = tuple(n for n in rest if n != fixed["loss"] and _could_be(n, found[n]))
        return Roles(fixed["loss"], step, epoch, lr, others)
    curves = [n for n in rest if len(found[n].row) > 1] or rest
    scored = sorted(((_score(n), len(found[n].row), -k, n) for k, n in enumerate(curves)), reverse=True)
    if scored and scored[0][0] > 0:
        best = scored[0]
        others = tuple(n for _, _, _, n in scored[1:] if _could_be(n, found[n]))
        return Roles(best[3], step, epoch, lr, others)
    if len(rest) == 1 and len(found[rest[0]].row) > 1 and not _only_rises(found[rest[0]]):
        return Roles(rest[0], step, epoch, lr, ())
    raise UnreadableRun(_no_loss(source, list(found)))


def _no_loss(source: str, names: Sequence[str]) -> str:
    if not names:
        return f"{source} holds no numbers; a loss curve needs a step and a loss in every row"
    return f"{source} holds {_list(names)}; none of these is called a training loss: name the column with --loss NAME"


def _list(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(plain(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _asked(asked: str, names: Sequence[str], source: str) -> str:
    for same in (lambda n: n == asked, lambda n: words(n) == words(asked)):
        hits = [n for n in names if same(n)]
        if hits:
            return hits[0]
    raise UnreadableRun(f"{source} has no column {asked!r}; it has {_list(list(names))}")


def _counts(column: Column) -> bool:
    """Whether a column can be a counter: finite, and not negative."""
    return bool(len(column.value) and np.isfinite(column.value).all() and column.value.min() >= 0)


def _only_rises(column: Column) -> bool:
    """Whether a column is a counter of something: no loss rises at every step."""
    return len(column.value) > 2 and bool(np.all(np.diff(column.value) > 0))


def _named(found: Mapping[str, Column], names: Sequence[str], fits=lambda column: True) -> str | None:
    by_words: dict[str, str] = {}
    for name in found:
        by_words.setdefault(words(name), name)
    for name in found:  # `Step (k)`, `lr [1/s]`
        by_words.setdefault(words(_UNIT.sub("", name)), name)
    for wanted in names:
        if wanted in by_words and fits(found[by_words[wanted]]):
            return by_words[wanted]
    return None


def _rate(found: Mapping[str, Column]) -> str | None:
    """The first column whose name begins or ends with lr: `lr-AdamW`, `optimizer/lr`, `lr/pg1`."""
    for name in found:
        said = words(name)
        if said.startswith(("lr ", "learning rate")) or said.endswith((" lr", "learning rate")):
            return name
    return None


def _could_be(name: str, column: Column) -> bool:
    return len(column.row) > 1 and _score(name) >= 50


def _score(name: str) -> int:
    """How surely a name is that of the training loss, 0 (not) to 100."""
    said = words(name)
    said = said if said in EXACT else words(_UNIT.sub("", name)) or said
    if said in EXACT:
        return EXACT[said]
    parts = set(said.split())
    if not parts & LOSSES or parts & ASIDE:
        return 0
    score = 50
    if "train" in parts or "training" in parts:
        score += 30
    if "total" in parts:
        score += 25
    if "step" in parts:
        score += 5
    if "epoch" in parts:
        score -= 20
    if not parts & {"loss", "losses", "lossf"}:
        score -= 25
    return score
