"""What the log of a GradScaler's factor says: every time that it falls, an update was left out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whyspike.form import count, number
from whyspike.logs.roles import words
from whyspike.types import Note, Series

NAMES = frozenset({"loss scale", "grad scale", "scale", "amp scale", "scaler scale", "lossscale", "fp16 loss scale"})


def overflows(signals: Mapping[str, Series]) -> Note | None:
    """How often the factor on the loss fell, which is said of no update that was made."""
    for name, series in signals.items():
        said = words(name)
        value = series.value[np.isfinite(series.value)]
        if not (said in NAMES or said.split(" ")[-2:] == ["loss", "scale"]) or len(value) < 2 or value.min() <= 0:
            continue
        fell = np.flatnonzero(series.value[1:] <= 0.5 * series.value[:-1]) + 1
        if len(fell):
            at = ", ".join(count(int(s)) for s in series.step[fell[:4]])
            text = (
                f"column {name!r} falls {count(len(fell))} times (at step {at}{', ...' if len(fell) > 4 else ''}; from "
                f"{number(float(value.max()))} down to {number(float(value.min()))}): gradients overflowed there, and "
                "the updates were left out; now and then this is how a GradScaler works"
            )
            return Note(id="loss-scale", text=text)
    return None
