"""Reads what a script prints by itself: `Epoch 3, step 100, loss: 0.53`, `[1, 2000] loss: 2.2`, tqdm's and rich's progress lines.

The last resort among the readers of text: a line counts when it names a loss.
"""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import COLOURS, NUMBER, pairs, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

NAME = "printed"
LOSS = re.compile(rf"\b(\w*loss\w*)\b\s*[:=]?\s*({NUMBER})", re.IGNORECASE)
EPOCH = re.compile(r"\bepochs?\b[\s:=\[(#]*(\d+)(?:\s*/\s*\d+)?", re.IGNORECASE)
COUNT = re.compile(r"\b(?:global[ _]?)?(?:step|iter(?:ation)?|batch|it|update)s?\b\s*[:=\[(#]?\s*(\d+)", re.IGNORECASE)
TUTORIAL = re.compile(r"^\[(\d+),\s*(\d+)\]")  # of PyTorch: [epoch, batch]
PLACE = re.compile(
    r"(?:\bEpoch:?\s*\[|^\s*Train:\s*\[?)(\d+)\]?\s*\[\s*(\d+)/\s*\d+"
)  # of the ImageNet example, of timm
BAR = re.compile(r"(\d+)\s*/\s*(\d+)\s*\[\s*\d+:\d+|[━─╸╺#█\-=>. ]\s(\d+)/(\d+)\s")  # tqdm, Keras, rich
FRACTION = re.compile(r"^\s*(\d+)/(\d+)\s")
KERAS = re.compile(r"\d+/\d+.{0,40}[━=].*- loss: ")
KERAS_MEANS = "each value is the mean since the begin of its epoch (Keras' progress bar)"
LEAST = 3


def sniff(source: Source) -> float:
    found = sum(_row(line) is not None for line in source.first_lines)
    if found >= LEAST:
        return 0.3
    if source.is_folder or not source.is_text:
        return 0.0
    return 0.2 if sum(_row(line) is not None for line in source.beginning(20_000)) >= LEAST else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows = []
    epoch = None
    for line in source.lines:
        row = _row(line)
        if row is None:
            # Keras and others name the epoch in a line of its own.
            match = EPOCH.match(COLOURS.sub("", line).strip())
            epoch = float(match[1]) if match is not None else epoch
        elif "epoch" in row or epoch is None:
            rows.append(row)
        else:
            rows.append({"epoch": epoch, **row})
    made = table(
        rows, source, averaged=KERAS_MEANS if any(KERAS.search(line) for line in source.beginning(2000)) else None
    )
    return runs([made], source=source.name, reader=NAME, asked=asked)


def _row(line: str) -> dict[str, float] | None:
    if "loss" not in line.lower():
        return None
    text = COLOURS.sub("", line)
    losses = {name: v for name, value in LOSS.findall(text) if (v := number(value)) is not None}
    if not losses:
        return None
    row = {
        **{k: v for k, v in pairs(text).items() if k.lower() in ("lr", "learning_rate", "grad_norm", "acc")},
        **losses,
    }
    if (match := TUTORIAL.match(text.strip())) is not None:
        row["epoch"], row["step"] = float(match[1]), float(match[2])
    if (match := EPOCH.search(text)) is not None:
        row["epoch"] = float(match[1])
    if (match := PLACE.search(text)) is not None:
        row["epoch"], row["step"] = float(match[1]), float(match[2])
    elif (match := COUNT.search(text)) is not None:
        row["step"] = float(match[1])
    elif "step" not in row and (match := BAR.search(text)) is not None:
        row["step"] = float(match[1] or match[3])
    elif "step" not in row and (match := FRACTION.match(text)) is not None:
        row["step"] = float(match[1])
    return row
