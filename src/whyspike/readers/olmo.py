"""Reads what OLMo prints: `[step=10/739328,epoch=0]`, and below it a line for each number, `train/CrossEntropyLoss=2.5`."""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

NAME = "olmo"
STEP = re.compile(r"\[(?:eval_)?step=(\d[\d,]*)(?:/[\d,]+)?")
LOSS = re.compile(r"^\s+train/CrossEntropyLoss=", re.MULTILINE)
VALUE = re.compile(r"^\s+([\w./\- ]+)=([-+\w.,]+)\s*$")


def sniff(source: Source) -> float:
    return 0.9 if many(source, STEP, "step=") and many(source, LOSS, "train/CrossEntropyLoss=") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows: list[dict[str, float]] = []
    for line in source.lines:
        match = STEP.search(line)
        if match is not None:
            rows.append({"step": float(match[1].replace(",", ""))})
        elif rows and (held := VALUE.match(line)) is not None and (v := number(held[2])) is not None:
            rows[-1][held[1].strip()] = v
    made = table(
        [row for row in rows if len(row) > 1], source, roles={"step": "step", "loss": "train/CrossEntropyLoss"}, zero=1
    )
    return runs([made], source=source.name, reader=NAME, asked=asked)
