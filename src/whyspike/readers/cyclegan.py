"""Reads the loss_log.txt of pytorch-CycleGAN-and-pix2pix: `(epoch: 1, iters: 100, time: 0.09, data: 0.15) D_A: 0.508 …`.

`iters` counts images within the epoch. No loss of a GAN measures progress; the generator's cycle or L1 loss is the
steadiest, and is taken where none is asked for.
"""

from __future__ import annotations

import re

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.lines import many, pairs, table
from whyspike.logs.source import Source
from whyspike.types import Run

NAME = "cyclegan"
LINE = re.compile(r"\(epoch: (\d+), iters: (\d+), [^)]*\) (.*)")
STEADY = ("cycle_A", "G_L1", "cycle_B", "L1", "G_GAN", "G_A", "G")


def sniff(source: Source) -> float:
    return 0.95 if many(source, LINE, "(epoch: ") else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The runs of a loss_log.

    Raises:
        UnreadableRun: there is no loss in it.
    """
    rows = []
    for line in source.lines:
        match = LINE.search(line)
        if match is not None:
            rows.append({"epoch": float(match[1]), "iters": float(match[2]), **pairs(match[3])})
    made = table(rows, source, roles={"step": "iters", "epoch": "epoch"})
    loss = next((n for n in STEADY if n in made.columns), None)
    if loss is None and asked.loss is None:
        raise UnreadableRun(f"{source.name} is a loss_log without a loss that is known; name one with --loss NAME")
    made = table(
        rows, source, roles={"step": "iters", "epoch": "epoch", **({"loss": loss} if loss else {})},
    )  # fmt: skip
    return runs([made], source=source.name, reader=NAME, asked=asked)
