"""Reads Python dicts that a training prints, as Hugging Face's Trainer does: `{'loss': 2.45, 'learning_rate': 1e-05, 'epoch': 0.02}`.

They may stand behind a progress bar in the same line. What has no loss (an evaluation, the summary) is kept beside it.
"""

from __future__ import annotations

import itertools
import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import COLOURS, NUMBER, many, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

NAME = "dict-lines"
RECORD = re.compile(r"\{'[\w./ -]+': .*\}")
ITEM = re.compile(rf"'([\w./ -]+)': '?({NUMBER})'?(?=[,}}\]])", re.IGNORECASE)
LOSS = re.compile(r"\{'[^{}\n]*loss'[^{}\n]*\}")
TRAINER = re.compile(r"\{'loss': [^{}\n]*'learning_rate': [^{}\n]*'epoch': ")
BAR = re.compile(r"(\d+)/(\d+) \[\d+:\d+[^\]]*\]\s*$")


def sniff(source: Source) -> float:
    return 0.85 if many(source, LOSS, "loss'") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows = []
    counted = 0
    for line in source.lines:
        text = COLOURS.sub("", line)
        if (bar := BAR.search(text)) is not None:
            counted = int(bar[1])  # drawn before the dict, in a line of its own
        match = RECORD.search(text)
        if match is None:
            continue
        row = {name: v for name, value in ITEM.findall(match[0]) if (v := number(value)) is not None}
        if row:
            rows.append({"printed at": float(counted), **row} if counted and "step" not in row else row)
    if any("printed at" not in row for row in rows):
        rows = [{k: v for k, v in row.items() if k != "printed at"} for row in rows]
    averaged = "each value is the mean of the steps since the one before: logging_steps of the Trainer, which the lines do not say"
    at = [row["printed at"] for row in rows if "loss" in row and "printed at" in row]
    rising = len(at) > 2 and all(b > a for a, b in itertools.pairwise(at))
    roles = {"step": "printed at"} if rising else {}
    made = table(rows, source, roles=roles, averaged=averaged if many(source, TRAINER, "{'loss': ") else None)
    return runs([made], source=source.name, reader=NAME, asked=asked)
