"""From rows and points to the frames of a run folder: collected in memory, written about once a second."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from whyspike.runfolder import RunFolder, pack, smallest_unsigned
from whyspike.stretch import Context, Stretch

NAN = float("nan")
MOST_ROWS = 4096  # rows that are collected before they are written, even if a second has not passed
MOST_BYTES = 1 << 20


class RecordWriter:
    """Collects what was measured and hands it to the run folder as frames.

    Args:
        first: the number of the first step.
    """

    def __init__(self, first: int = 0) -> None:
        self.folder: RunFolder | None = None
        self.first = first  # step of the first row that is not yet written
        self.n_rows = 0
        self._loss = array("d")
        self._n_samples = array("q")
        self._runs: list[tuple[int, Context]] = []  # what holds for so many steps
        self._clips: list[tuple[int, float, float]] = []
        self._ids: list[bytes | list[int]] = []  # of a stretch: 32 bits each, or what may need more
        self._ids_count = array("q")
        self._ids_known = True
        self._bytes = 0  # of the ids
        self._points: dict[str, tuple[list[int], list[float]]] = {}
        self._tables: dict[str, tuple[list[int], list[Sequence[float]]]] = {}
        self._marks: list[dict[str, object]] = []

    def steps(self, stretch: Stretch) -> None:
        """Take over the steps that follow those already here."""
        first, steps = stretch.first, stretch.steps
        self._loss.extend(stretch.loss)
        self._n_samples.extend(stretch.n_samples)
        if steps[0][2] is steps[-1][2]:  # every change makes a new one
            self._runs.append((len(steps), steps[0][2]))
        else:
            self._runs += [(1, s[2]) for s in steps]
        if steps[-1][3][0] >= first:
            self._clips += [s[3] for k, s in enumerate(steps, first) if s[3][0] == k]
        if stretch.all_arrays:
            joined = b"".join(stretch.ids)
            self._ids.append(joined)
            self._bytes += len(joined)
            self._ids_count.extend(stretch.n_samples)
        elif None in stretch.ids:
            self._ids_known = False
        else:
            listed = [i for ids in stretch.ids for i in ids]
            self._ids.append(listed)
            self._bytes += 8 * len(listed)
            self._ids_count.extend(map(len, stretch.ids))
        self.n_rows += len(steps)

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

    @property
    def full(self) -> bool:
        """Whether so much is collected that it had better be written."""
        return self.n_rows >= MOST_ROWS or self._bytes >= MOST_BYTES

    def size(self) -> int:
        """About what is collected, in bytes, rather too much."""
        columns = self.n_rows * 64 + self._bytes
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
            for column in (self._loss, self._n_samples, self._runs, self._clips, self._ids, self._ids_count):
                del column[:]
            self._ids_known, self._bytes = True, 0
        for name, (steps, values) in self._points.items():
            step, value = np.asarray(steps, np.uint32), np.asarray(values, np.float64)
            folder.append({"kind": "signal", "name": name, "step": pack(step), "value": pack(value)})
        self._points.clear()
        self._flush_tables_to_marks()
        for mark in self._marks:
            folder.append(mark)
        self._marks.clear()

    def _columns(self) -> dict[str, object]:
        n = self.n_rows
        step = np.arange(self.first, self.first + n)
        columns: dict[str, object] = {"loss": pack(np.frombuffer(self._loss))}
        lengths = [length for length, _ in self._runs]
        lr = np.repeat([c[2] for _, c in self._runs], lengths)
        clip_max_norm, clip_norm = np.full(n, NAN), np.full(n, NAN)
        for at, limit, norm in self._clips:
            clip_max_norm[at - self.first], clip_norm[at - self.first] = limit, norm
        for name, found in (("lr", lr), ("clip_max_norm", clip_max_norm), ("clip_norm", clip_norm)):
            if not np.isnan(found).all():
                columns[name] = pack(found)
        epoch = np.repeat([c[0] for _, c in self._runs], lengths)
        index = np.where(epoch < 0, -1, step - np.repeat([c[1] for _, c in self._runs], lengths))
        n_samples = np.frombuffer(self._n_samples, dtype=np.int64)
        for name, found in (("epoch", epoch), ("index", index), ("n_samples", n_samples)):
            if found.min() >= 0:  # -1: not known
                columns[name] = _packed(found)
        ids = self._all_ids() if self._ids_known else None
        if ids is not None and len(ids):
            columns["ids"] = _packed(ids)
            columns["ids_count"] = _packed(np.frombuffer(self._ids_count, dtype=np.int64))
        return columns

    def _all_ids(self) -> np.ndarray | None:
        """The ids of all steps, one after the other; None where they are no integers."""
        try:
            parts = [
                np.frombuffer(ids, np.uintc) if isinstance(ids, bytes) else np.frombuffer(array("Q", ids), np.uint64)
                for ids in self._ids
            ]
        except (OverflowError, TypeError):
            return None
        return np.concatenate(parts) if parts else None


def _packed(values: np.ndarray) -> list[object]:
    """Integers from 0 on, in the smallest type that holds them."""
    return pack(values.astype(smallest_unsigned(int(values.max()))))
