"""Reads what fairseq prints: JSON after `| INFO | train_inner |`, with numbers as text, or `loss=5.4, … num_updates=100`."""

from __future__ import annotations

import itertools
import json
import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, pairs, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

NAME = "fairseq"
RECORD = re.compile(r"\| train_inner \| (\{.*\})")
SIMPLE = re.compile(r"\| train_inner \| .*?num_updates[=:]")


def sniff(source: Source) -> float:
    return 0.95 if many(source, RECORD, "| train_inner |") or many(source, SIMPLE, "| train_inner |") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows = []
    for line in source.lines:
        if (match := RECORD.search(line)) is not None:
            try:
                record = json.loads(match[1])
            except ValueError:
                continue
            rows.append({k: v for k, text in record.items() if (v := number(text)) is not None})
        elif SIMPLE.search(line) is not None:
            rows.append(pairs(line.split("| train_inner |", 1)[1]))
    for row in rows:
        if "update" in row:  # the epochs that are done, as a fraction
            row["epoch"] = row.pop("update")
    gaps = [
        b["num_updates"] - a["num_updates"]
        for a, b in itertools.pairwise(rows)
        if "num_updates" in a and "num_updates" in b
    ]
    every = sorted(gaps)[len(gaps) // 2] if gaps else 1
    made = table(
        rows,
        source,
        roles={"step": "num_updates", "loss": "loss", "lr": "lr"},
        zero=1,
        averaged=f"each value is the mean of the {every:.0f} updates before it (fairseq, --log-interval), in bits"
        if every > 1
        else None,
    )
    return runs([made], source=source.name, reader=NAME, asked=asked)
