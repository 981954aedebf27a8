"""Reads what detectron2 prints: `iter: 19  total_loss: 5.5  loss_cls: 4.4 … lr: 0.000400`. A loss is a median of 20 steps."""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, pairs, table
from whyspike.logs.source import Source
from whyspike.types import Run

NAME = "detectron2"
LINE = re.compile(r"iter: (\d+) +total_loss: ")


def sniff(source: Source) -> float:
    return 0.9 if many(source, LINE, "total_loss: ") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows = []
    for line in source.lines:
        match = LINE.search(line)
        if match is not None:
            rows.append(
                {"iter": float(match[1]), **{k: v for k, v in pairs(line[match.start() :]).items() if k != "iter"}}
            )
    made = table(
        rows,
        source,
        roles={"step": "iter", "loss": "total_loss", "lr": "lr"},
        zero=0,
        averaged="each value is the median of the 20 steps before it (detectron2, CommonMetricPrinter)",
    )
    return runs([made], source=source.name, reader=NAME, asked=asked)
