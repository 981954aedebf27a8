"""From rows and points to the frames of a run folder: collected in memory, written about once a second."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from whyspike.runfolder import RunFolder, pack, smallest_unsigned

# A micro-batch of a step: (batch, version counters of its tensors, sample ids, number of samples, generator states)
Draw = tuple[Any, Any, Any, int, Any]
# What holds for many steps: (epoch, first step of the epoch, lr of the first group, hyperparameters of all groups)
Context = tuple[int, int, float, tuple[dict[str, Any], ...] | None]
# A step: (loss, its micro-batches, context, the last clipping as (step, max_norm, norm before)). The very same tuples
# are kept for capsules.
Step = tuple[Any, list[Draw], Context, tuple[int, float, float]]

NAN = float("nan")


class RecordWriter:
    """Collects what was measured and hands it to the run folder as frames."""

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.first = 0  # step of the first row that is not yet written
        self.n_rows = 0
        self._floats = {"loss": array("d"), "lr": array("d"), "clip_max_norm": array("d"), "clip_norm": array("d")}
        self._counts = {"epoch": array("q"), "index": array("q"), "n_samples": array("q")}
        self._ids = array("I")  # twice as fast to fill as 64 bits
        self._ids_count = array("q")
        self._ids_known = True
        self._points: dict[str, tuple[list[int], list[float]]] = {}
        self._tables: dict[str, tuple[list[int], list[Sequence[float]]]] = {}
        self._marks: list[dict[str, object]] = []

    def steps(self, first: int, steps: Sequence[Step]) -> None:
        """Take over consecutive steps, beginning with step `first`; their losses must be numbers by now."""
        count, floats, counts = len(steps), self._floats, self._counts
        floats["loss"].extend([s[0] for s in steps])
        epoch, begun, lr, _ = context = steps[0][2]
        if steps[-1][2] is context:  # every change makes a new one
            floats["lr"].extend([lr] * count)
            counts["epoch"].extend([epoch] * count)
            counts["index"].extend(range(first - begun, first - begun + count) if epoch >= 0 else [-1] * count)
        else:
            floats["lr"].extend([s[2][2] for s in steps])
            counts["epoch"].extend([s[2][0] for s in steps])
            counts["index"].extend([k - s[2][1] if s[2][0] >= 0 else -1 for k, s in enumerate(steps, first)])
        if steps[-1][3][0] < first:
            floats["clip_max_norm"].extend([NAN] * count)
            floats["clip_norm"].extend([NAN] * count)
        else:
            clips = [s[3] if s[3][0] == k else (k, NAN, NAN) for k, s in enumerate(steps, first)]
            floats["clip_max_norm"].extend([c[1] for c in clips])
            floats["clip_norm"].extend([c[2] for c in clips])
        counts["n_samples"].extend([s[1][0][3] if len(s[1]) == 1 else n_samples(s[1]) for s in steps])
        if self._ids_known:
            before = len(self._ids), len(self._ids_count)
            if not self._add_ids(steps):
                del self._ids[before[0] :], self._ids_count[before[1] :]
                self._ids = array("Q", self._ids)  # beyond 32 bits
                self._ids_known = self._add_ids(steps)
        self.n_rows += count

    def _add_ids(self, steps: Sequence[Step]) -> bool:
        ids, count = self._ids, self._ids_count
        try:
            for _, draws, _, _ in steps:
                before = len(ids)
                for draw in draws:
                    found = draw[2]
                    ids.extend(found if type(found) is not array or found.typecode == ids.typecode else found.tolist())
                count.append(len(ids) - before)
        except (OverflowError, TypeError):  # too large; unknown in one of them, or no integers
            return False
        return True

    def point(self, name: str, step: int, value: float) -> None:
        """A signal that was measured at one step."""
        steps, values = self._points.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    def names(self, name: str, columns: Sequence[str]) -> None:
        """The columns of a table from here on."""
        self._flush_tables_to_marks()
        self._marks.append({"kind": "names", "name": name, "columns": list(columns)})

    def table(self, name: str, step: int, values: Sequence[float]) -> None:
        """One row of a table, e.g. the gradient norm of every tensor at one step."""
        steps, rows = self._tables.setdefault(name, ([], []))
        steps.append(step)
        rows.append(values)

    def mark(self, step: int, name: str, data: dict[str, object]) -> None:
        """Something that happened once."""
        self._marks.append({"kind": "mark", "step": step, "name": name, "data": data})

    def _flush_tables_to_marks(self) -> None:
        for name, (steps, rows) in self._tables.items():
            value = pack(np.asarray(rows, dtype=np.float32))
            self._marks.append(
                {"kind": "table", "name": name, "step": pack(np.asarray(steps, np.uint32)), "value": value}
            )
        self._tables.clear()

    def size(self) -> int:
        """About what is collected, in bytes, rather too much."""
        columns = self.n_rows * 64 + 4 * len(self._ids)
        points = sum(100 + 12 * len(steps) for steps, _ in self._points.values())
        tables = sum(100 + len(rows) * (4 + 4 * len(rows[0])) for _, rows in self._tables.values())
        return 500 + columns + points + tables + 1000 * len(self._marks)

    def flush(self) -> None:
        """Write everything collected. Does nothing without a folder.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        folder = self.folder
        if folder is None:
            return
        if self.n_rows:
            folder.append({"kind": "steps", "first": self.first, "columns": self._columns()})
            self.first += self.n_rows
            self.n_rows = 0
            for column in (*self._floats.values(), *self._counts.values(), self._ids, self._ids_count):
                del column[:]
            self._ids_known = True
        for name, (steps, values) in self._points.items():
            step, value = np.asarray(steps, np.uint32), np.asarray(values, np.float64)
            folder.append({"kind": "signal", "name": name, "step": pack(step), "value": pack(value)})
        self._points.clear()
        self._flush_tables_to_marks()
        for mark in self._marks:
            folder.append(mark)
        self._marks.clear()

    def _columns(self) -> dict[str, object]:
        columns: dict[str, object] = {}
        for name, values in self._floats.items():
            found = np.frombuffer(values, dtype=np.float64)
            if name == "loss" or not np.isnan(found).all():
                columns[name] = pack(found)
        for name, values in self._counts.items():
            found = np.frombuffer(values, dtype=np.int64)
            if found.min() >= 0:  # -1: not known
                columns[name] = pack(found.astype(smallest_unsigned(int(found.max()))))
        if self._ids_known and len(self._ids):
            found = np.frombuffer(self._ids, dtype=self._ids.typecode)
            columns["ids"] = pack(found.astype(smallest_unsigned(int(found.max()))))
            count = np.frombuffer(self._ids_count, dtype=np.int64)
            columns["ids_count"] = pack(count.astype(smallest_unsigned(int(count.max()))))
        return columns


def n_samples(draws: Sequence[Draw]) -> int:
    """The samples of a step, all micro-batches together; -1 when not known."""
    if len(draws) == 1:
        return draws[0][3]
    counts = [d[3] for d in draws]
    return sum(counts) if counts and min(counts) >= 0 else -1


def sample_ids(draws: Sequence[Draw]) -> Sequence[int] | None:
    """The dataset indices of a step, all micro-batches together; None when not known."""
    if not draws or any(d[2] is None for d in draws):
        return None
    return draws[0][2] if len(draws) == 1 else [i for d in draws for i in d[2]]
