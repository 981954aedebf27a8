"""Reads what Megatron-LM prints: ` iteration 100/ 500000 | consumed samples: 25600 | … | lm loss: 6.8E+00 | loss scale: … |`."""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, pairs, table
from whyspike.logs.source import Source
from whyspike.types import Run

NAME = "megatron"
LINE = re.compile(r"iteration\s+(\d+)/\s*\d+ \|(.*)")


def sniff(source: Source) -> float:
    return 0.9 if many(source, LINE, "iteration") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows = []
    for line in source.lines:
        match = LINE.search(line)
        if match is not None:
            parts = [pairs(part) for part in match[2].split("|")]
            rows.append({"iteration": float(match[1]), **{k: v for part in parts for k, v in part.items()}})
    every = rows[1]["iteration"] - rows[0]["iteration"] if len(rows) > 1 else 1
    made = table(
        rows,
        source,
        roles={"step": "iteration", **({"loss": "lm loss"} if any("lm loss" in row for row in rows) else {})},
        zero=1,
        averaged=f"each value is the mean of the {every:.0f} steps before it (Megatron, --log-interval)"
        if every > 1
        else None,
    )
    return runs([made], source=source.name, reader=NAME, asked=asked)
