"""Reads the logs of OpenMMLab's toolboxes: `Epoch [1][50/7330] lr: 2.000e-03, … loss: 1.23`, `Epoch(train) [1][50/7330] …`, `Iter(train) [50/160000] …`.

Their JSON lines (`.log.json`, `scalars.json`) are read here as well: rows of mode "val" count other batches.
"""

from __future__ import annotations

import json
import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, pairs, table
from whyspike.logs.source import Source
from whyspike.logs.table import Table
from whyspike.readers.metric_json import flat
from whyspike.types import Run

NAME = "openmmlab"
SCALARS = "vis_data/scalars.json"
EPOCH = re.compile(r"Epoch(?:\(train\))?\s*\[(\d+)\]\[\s*(\d+)/(\d+)\]\s*(.*)")
ITER = re.compile(r"Iter(?:\(train\))?\s*\[\s*(\d+)/\d+\]\s*(.*)")
NEWER = re.compile(r"(?:Epoch|Iter)\(train\)")
OLDER = re.compile(r'^\{"mode": ', re.MULTILINE)
RECORD = re.compile(r'^\{"mode": "train".*"iter": |^\{.*"data_time".*"loss": .*"iter": ', re.MULTILINE)
FORMS = {EPOCH: "Epoch", ITER: "Iter", RECORD: '"iter": '}  # and what each of their lines holds


def sniff(source: Source) -> float:
    if source.is_folder:  # of a run of MMEngine, which writes its values three times
        return 1.0 if (source.path / SCALARS).is_file() else 0.0
    return 0.9 if any(many(source, form, holds) for form, holds in FORMS.items()) else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    if source.is_folder:
        source = Source(source.path / SCALARS)
    if many(source, RECORD, FORMS[RECORD]):
        return runs([_of_records(source)], source=source.name, reader=NAME, asked=asked)
    rows: list[dict[str, float]] = []
    every, newer = 0.0, many(source, NEWER, "(train)")
    for line in source.lines:
        if (match := EPOCH.search(line)) is not None:
            epoch, inside, length = (float(match[k]) for k in (1, 2, 3))
            rows.append({**pairs(match[4]), "epoch": epoch, "iter": (epoch - 1) * length + inside})
            every = every or inside
        elif (match := ITER.search(line)) is not None:
            rows.append({**pairs(match[2]), "iter": float(match[1])})
            every = every or float(match[1])
    made = table(rows, source, roles={"step": "iter", "loss": "loss"}, zero=1, averaged=_averaged(every, newer=newer))
    return runs([made], source=source.name, reader=NAME, asked=asked)


def _averaged(every: float, *, newer: bool) -> str | None:
    if every <= 1:
        return None
    if newer:  # the window is the LogProcessor's, and no longer the interval
        return "each value is the mean of the steps before it: the last 10, unless window_size says otherwise"
    return f"each value is the mean of the {every:.0f} steps before it (LoggerHook, interval)"


def _of_records(source: Source) -> Table:
    records = []
    for line in source.lines:
        try:
            record = json.loads(line) if line.startswith("{") else None
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("mode", "train") == "train":
            record.pop("step", None)  # of the run, in newer versions: the same as iter, or the epoch
            records.append(record)
    rows = flat(records)
    every = rows[0].get("iter", 0.0) if rows else 0.0
    return table(
        rows, source, roles={"step": "iter", "loss": "loss", "epoch": "epoch"}, zero=1,
        averaged=_averaged(every, newer=not many(source, OLDER, '{"mode": ')),
    )  # fmt: skip
