"""From the rows of a log to the runs in it: which column is what, in which order, in which epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.form import count, number, plain
from whyspike.logs import epochs, order, roles, values
from whyspike.logs.objectives import objective
from whyspike.logs.rates import lr_steps
from whyspike.logs.scales import overflows
from whyspike.logs.settings import Settings
from whyspike.logs.smoothing import moving_mean
from whyspike.logs.table import Column, Table
from whyspike.points import spacing
from whyspike.types import Note, Run, Series


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person says about a log because it is not in it."""

    loss: str | None = None  # the name of the column
    steps_per_epoch: float | None = None
    batch_size: int | None = None
    dataset_size: int | None = None
    beside: Settings | None = None  # what a configuration beside the log says; what a person says counts before it

    @property
    def settings(self) -> Settings | None:
        """What the configuration says, with what the person says in its place."""
        return None if self.beside is None else self.beside.but(self.batch_size, self.dataset_size)

    @property
    def epoch_length(self) -> tuple[float, str] | None:
        """Updates in an epoch, and where they come from. The last batch of an epoch counts, however small."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch, "--steps-per-epoch"
        if self.dataset_size is not None and self.batch_size is not None:
            return float(ceil(self.dataset_size / self.batch_size)), "--dataset-size and --batch-size"
        return None


def runs(tables: Sequence[Table], *, source: str, reader: str, asked: Asked | None = None) -> tuple[Run, ...]:
    """The runs of a log's tables, in their order.

    Raises:
        UnreadableRun: there is no loss curve in any of them; the message says what was found and what to write.
    """
    asked = asked or Asked()
    made: list[Run] = []
    problems: list[UnreadableRun] = []
    for table in tables:
        try:
            made += _of_table(table, source, reader, asked)
        except UnreadableRun as error:
            problems.append(error)
    if not made:
        raise problems[0] if problems else UnreadableRun(f"{source} holds no row with a number in it")
    return tuple(made)


RANKS = frozenset({"rank", "local rank", "global rank", "process index", "process rank", "dp rank"})


def _of_one_rank(table: Table) -> Table:
    """The rows of the first process, where the rows of a log are those of several."""
    column = next((c for name, c in table.columns.items() if roles.words(name) in RANKS), None)
    if column is None or len(column.row) < table.n_rows or not np.isfinite(column.value).all():
        return table
    ranks = np.unique(column.value)
    if len(ranks) < 2 or len(ranks) > table.n_rows / 2 or (ranks != np.round(ranks)).any():
        return table
    mine = np.flatnonzero(column.value == ranks[0])
    place = np.full(table.n_rows, -1)
    place[mine] = np.arange(len(mine))
    kept = {}
    for name, c in table.columns.items():
        held = place[c.row] >= 0
        if held.any():
            kept[name] = Column(place[c.row[held]], c.value[held])
    text = (
        f"the log holds the losses of {count(len(ranks))} processes, each of its own share of the batch; those of rank "
        f"{number(float(ranks[0]))} were taken"
    )
    return replace(table, columns=kept, n_rows=len(mine), notes=(*table.notes, Note(id="rank-local", text=text)))


def _of_table(table: Table, source: str, reader: str, asked: Asked) -> list[Run]:
    table = _of_one_rank(table)
    found = roles.choose(table, source, asked.loss)
    loss = table.columns[found.loss]
    if len(loss.row) < 2:
        raise UnreadableRun(
            f"{source} holds {'one value' if len(loss.row) else 'no value'} of {plain(found.loss)}; a curve "
            "needs more: log the loss of every step"
        )
    if not np.isfinite(loss.value).any():
        raise UnreadableRun(
            f"{source} holds {count(len(loss.value))} values of {plain(found.loss)}, and none of them is a finite "
            "number: there is no curve. Where the loss is nan from the first step on, look at the data and the first "
            "forward pass; `whyspike check` does"
        )
    step_column = table.columns[found.step] if found.step else None
    epoch = _dense(table.columns[found.epoch], table.n_rows) if found.epoch else None
    epoch_only = step_column is None and epoch is not None and _one_each(epoch[loss.row])
    if step_column is not None:
        step = _dense(step_column, table.n_rows)
    else:
        step = np.full(table.n_rows, np.nan)
        step[loss.row] = np.floor(epoch[loss.row]) if epoch_only and epoch is not None else np.arange(len(loss.row))
    made = [
        _of_piece(table, found, piece, asked, source, reader, epoch_only=epoch_only)
        for piece in order.arrange(step, None if epoch_only else epoch)
    ]
    whole = [run for run in made if run is not None]
    if not whole:
        raise UnreadableRun(f"{source} holds no step that has a value of {plain(found.loss)}")
    return whole


def _dense(column: Column, n_rows: int) -> np.ndarray:
    out = np.full(n_rows, np.nan)
    out[column.row] = column.value
    return out


def _one_each(epoch: np.ndarray) -> bool:
    """Whether the rows are one for each epoch."""
    known = epoch[np.isfinite(epoch)]
    return len(known) > 1 and bool(np.all(np.diff(known) == 1))


def _of_piece(
    table: Table, found: roles.Roles, piece: order.Piece, asked: Asked, source: str, reader: str, *, epoch_only: bool
) -> Run | None:
    place = np.full(table.n_rows, -1)
    place[piece.rows] = np.arange(len(piece.rows))

    def series(column: Column) -> tuple[np.ndarray, np.ndarray, Note | None]:
        at = place[column.row]
        here = np.flatnonzero(at >= 0)
        here = here[np.argsort(at[here], kind="stable")]
        step = piece.step[at[here]]
        kept, note = order.once(step)
        return step[kept], column.value[here[kept]], note

    step, loss, twice = series(table.columns[found.loss])
    if len(step) < 2:
        return None
    zero = table.zero if table.zero is not None else 0 if epoch_only else values.zero_of(step)
    said = {"loss": f"column {found.loss!r}"}
    if found.others:
        shown = ", ".join(repr(plain(o)) for o in found.others[:6])
        said["loss"] += f" (also there: {shown}; --loss NAME takes another)"
    said["step"] = (
        f"column {found.step!r}" if found.step else "the number of the row" if not epoch_only else "the epoch"
    )
    placed = None if epoch_only else _epochs(table, found, piece, step - zero, zero, asked, series)
    signals: dict[str, Series] = {}
    lr: np.ndarray | None = None
    for name, column in table.columns.items():
        if name in (found.loss, found.step, found.epoch):
            continue
        at, value, _ = series(column)
        if not len(at):
            continue
        if name == found.lr:
            lr = _latest(at, value, step)
            said["lr"] = f"column {name!r}"
        signals[plain(name)] = Series(at, value)
    facts: dict[str, Any] = {**table.facts, "logged_every": spacing(step)[0], "first_step": zero}
    played = objective(table.columns)
    if played is not None:
        facts["objective"], facts["players"] = played
    batch_size, dataset_size = _sizes(asked, placed, said)
    if placed is not None:
        said["steps_per_epoch"] = f"{number(placed.length)}, from {placed.said}"
        facts["epoch_length"] = placed.length
        facts["epochs_exact"] = placed.exact
    notes = [*table.notes, *piece.notes, *([twice] if twice else [])]
    notes += values.notes(step, loss, zero, table.averaged, epoch_only=epoch_only)
    plain_values = not (epoch_only or table.averaged) and spacing(step)[1]
    means = moving_mean(step, loss) if plain_values else None
    rates = lr_steps(step, loss, lr)
    scaled = overflows(signals)
    notes += [note for note in (means, rates, scaled) if note is not None]
    return Run(
        source=f"{source}: {plain(table.name)}" if table.name else source,
        reader=reader,
        step=step,
        loss=loss,
        epoch=placed.epoch if placed else None,
        index=placed.index if placed else None,
        lr=lr,
        signals=signals,
        steps_per_epoch=max(1, round(placed.length)) if placed else None,
        batch_size=batch_size,
        n_samples=_n_samples(placed, dataset_size, batch_size, step, averaged=bool(table.averaged)),
        facts={**facts, "reader_says": said},
        marks=(*table.marks, *piece.marks),
        notes=tuple(notes),
    )


def _epochs(
    table: Table,
    found: roles.Roles,
    piece: order.Piece,
    done: np.ndarray,
    zero: int,
    asked: Asked,
    series: Any,
) -> epochs.Epochs | None:
    """The place of each step in its epoch: as the person says, else as the log does."""
    if (given := asked.epoch_length) is not None:
        return epochs.of_length(done, *given)
    if piece.epoch_length is not None:
        return epochs.of_length(done, piece.epoch_length, "the step counter, which starts anew in every epoch")
    if found.epoch is not None:
        at, value, _ = series(table.columns[found.epoch])
        told = epochs.of_column(at - zero, value, where=done, total=table.epoch_total, name=found.epoch)
        if told is not None:
            return told
    given = asked.settings.epoch_length if asked.settings is not None else None
    # Of a log without an epoch. One with an epoch that never changes is shorter than one.
    if given is None or (found.epoch is not None and given[0] <= done[-1]):
        return None
    return epochs.of_length(done, *given)


def _sizes(asked: Asked, placed: epochs.Epochs | None, said: dict[str, str]) -> tuple[int | None, int | None]:
    """Samples in an update and in an epoch: as the person says, else as the settings beside the log do.

    Settings that make an epoch of another length than the log's are those of another training.
    """
    told = asked.settings
    length = told.epoch_length if told is not None else None
    if told is None or (length is not None and placed is not None and abs(length[0] - placed.length) > 1):
        return asked.batch_size, asked.dataset_size
    if told.batch_size is not None and asked.batch_size is None:
        said["batch_size"] = f"{count(told.batch_size)}, from {told.said}"
    return told.batch_size, told.dataset_size


def _n_samples(
    placed: epochs.Epochs | None, n: int | None, size: int | None, step: np.ndarray, *, averaged: bool
) -> np.ndarray | None:
    """The samples of each step, int64 [T]: N and B say how many are left for the last one of an epoch.

    None where they are not said, where a value is a mean of several steps, or where the epochs of the log are not as
    long as N and B make them.
    """
    if placed is None or averaged or n is None or size is None or not placed.exact or spacing(step)[0] != 1:
        return None
    steps = ceil(n / size)
    if round(placed.length) != steps:
        return None
    return np.where(placed.index == steps - 1, n - size * (steps - 1), size).astype(np.int64)


def _latest(at: np.ndarray, value: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A signal at each step: its latest value, nan before the first."""
    place = np.searchsorted(at, step, side="right") - 1
    return np.where(place >= 0, value[np.maximum(place, 0)], np.nan)


def described(run: Run) -> str:
    """One line on what was read and how it was taken."""
    said = run.facts.get("reader_says")
    parts = [f"{k.replace('_', ' ')}: {v}" for k, v in said.items()] if isinstance(said, dict) else []
    return f"{plain(run.source)}: {count(len(run))} values read as {run.reader}; {'; '.join(parts)}"
