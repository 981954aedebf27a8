"""Reads llm.c and modded-nanogpt: `step 1/18865 | loss 10.95 (+nanz)| norm 15.3 …`, `s:1 trl:10.95 lr:…`, `step:1/1750 train_loss:10.8 …`."""

from __future__ import annotations

import re

from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import NUMBER, many, table
from whyspike.logs.source import Source
from whyspike.logs.table import number
from whyspike.types import Run

NAME = "llm.c"
PRINTED = re.compile(
    rf"^step\s+(\d+)/\d+ \| (?:train )?loss ({NUMBER})(?:.*?norm ({NUMBER}))?(?:.*?lr ({NUMBER}))?", re.MULTILINE
)
LOGGED = re.compile(rf"^s:(\d+) (trl|tel|eval):({NUMBER})(?: lr:({NUMBER}))?(?: norm:({NUMBER}))?", re.MULTILINE)
MODDED = re.compile(rf"^step:(\d+)/\d+ (train|val)_loss:({NUMBER})", re.MULTILINE)
FORMS = {PRINTED: "loss ", LOGGED: "s:", MODDED: "_loss:"}  # and what each of their lines holds
NAMES = {"trl": "train loss", "tel": "val loss", "eval": "eval", "train": "train loss", "val": "val loss"}


def sniff(source: Source) -> float:
    return 0.95 if any(many(source, form, holds) for form, holds in FORMS.items()) else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    rows: list[dict[str, float]] = []
    for line in source.lines:
        values: dict[str, str | None] = {}
        if (match := PRINTED.match(line)) is not None:
            values = {"train loss": match[2], "norm": match[3], "lr": match[4]}
        elif (match := LOGGED.match(line)) is not None:
            values = {NAMES[match[2]]: match[3], "lr": match[4], "norm": match[5]}
        elif (match := MODDED.match(line)) is not None:
            values = {NAMES[match[2]]: match[3]}
        if match is not None:
            held = {name: v for name, text in values.items() if text and (v := number(text)) is not None}
            rows.append({"step": float(match[1]), **held})
    return runs([table(rows, source, roles={"step": "step"})], source=source.name, reader=NAME, asked=asked)
