"""From rows and points to the frames of a run folder: collected in memory, written about once a second."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from whyspike.runfolder import RunFolder, pack, smallest_unsigned

# The fields of a row: what is known of one step. The same list object is kept for capsules.
STEP, LOSS, EPOCH, INDEX, N_SAMPLES, IDS, LR, CLIP, CLIP_NORM, HYPER, RNG, BATCHES = range(12)


class RecordWriter:
    """Collects what was measured and hands it to the run folder as frames."""

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.first = 0  # step of the first row that is not yet written
        self.n_rows = 0
        self._floats = {"loss": array("d"), "lr": array("d"), "clip_max_norm": array("d"), "clip_norm": array("d")}
        self._counts = {"epoch": array("q"), "index": array("q"), "n_samples": array("q")}
        self._ids = array("I")
        self._ids_count = array("q")
        self._ids_known = True
        self._points: dict[str, tuple[list[int], list[float]]] = {}
        self._tables: dict[str, tuple[list[int], list[Sequence[float]]]] = {}
        self._marks: list[dict[str, object]] = []

    def rows(self, rows: Sequence[list[Any]]) -> None:
        """Take rows over; their losses must be numbers by now."""
        floats, counts = self._floats, self._counts
        floats["loss"].extend([r[LOSS] for r in rows])
        floats["lr"].extend([r[LR] for r in rows])
        floats["clip_max_norm"].extend([r[CLIP] for r in rows])
        floats["clip_norm"].extend([r[CLIP_NORM] for r in rows])
        counts["epoch"].extend([r[EPOCH] for r in rows])
        counts["index"].extend([r[INDEX] for r in rows])
        counts["n_samples"].extend([r[N_SAMPLES] for r in rows])
        if self._ids_known:
            ids, before = self._ids, len(self._ids)
            try:
                for r in rows:
                    ids.extend(r[IDS])
                self._ids_count.extend([len(r[IDS]) for r in rows])
            except OverflowError:  # beyond 32 bits (or negative, which no dataset index of a sampler is)
                del ids[before:]
                self._widen(rows)
            except TypeError:  # unknown in one of them, or no integers
                self._ids_known = False
        self.n_rows += len(rows)

    def _widen(self, rows: Sequence[list[Any]]) -> None:
        if self._ids.typecode == "Q":
            self._ids_known = False
            return
        self._ids = array("Q", self._ids)
        try:
            for r in rows:
                self._ids.extend(r[IDS])
            self._ids_count.extend([len(r[IDS]) for r in rows])
        except (OverflowError, TypeError):
            self._ids_known = False

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
            self._marks.append({"kind": "table", "name": name, "step": pack(np.asarray(steps, np.uint32)), "value": value})
        self._tables.clear()

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
