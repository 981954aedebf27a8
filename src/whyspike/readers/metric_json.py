"""Reads JSON of the form {metric: {"values": {step: value}}}, as Megatron's golden values, and plain relatives of it.

Relatives: {metric: {step: value}}, {metric: [value, …]} (a Keras History, one value for each epoch, or a script's own
lists), and a list of records [{"step": 1, "loss": 2.5}, …].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Run

NAME = "metric-json"


def sniff(source: Source) -> float:
    if not source.first_lines or source.first_lines[0].lstrip()[:1] not in ("{", "["):
        return 0.0
    try:
        data = json.loads(source.text)
    except ValueError:
        return 0.0
    return 0.7 if isinstance(data, (dict, list)) and _rows(data) else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of the document.

    Raises:
        UnreadableRun: none of its metrics is a loss.
    """
    rows = _rows(json.loads(source.text))
    if not rows:
        raise UnreadableRun(f'{source.name} is JSON without a curve; {{"loss": {{"1": 2.5, "2": 2.4}}}} would be one')
    found, n = columns(rows)
    roles = {"step": "step"} if "step" in found else {}
    return runs([Table(columns=found, n_rows=n, roles=roles)], source=source.name, reader=NAME, asked=asked)


def _rows(data: Mapping[str, Any] | Sequence[Any]) -> list[dict[str, float]]:
    """One row for each step."""
    if isinstance(data, Mapping):
        by_step: dict[float, dict[str, float]] = {}
        lists: dict[str, list[float | None]] = {}
        for name, held in data.items():
            if isinstance(held, Mapping):
                held = held.get("values", held)
            if isinstance(held, Mapping):
                for key, value in held.items():
                    step, v = number(key), number(value)
                    if step is not None and v is not None:
                        by_step.setdefault(step, {"step": step})[str(name)] = v
            elif isinstance(held, list):
                lists[str(name)] = [number(v) for v in held]
        if by_step:
            return [by_step[step] for step in sorted(by_step)]
        longest = max((len(v) for v in lists.values()), default=0)
        rows = [
            {k: v for k, held in lists.items() if j < len(held) and (v := held[j]) is not None} for j in range(longest)
        ]
        if not rows and any(isinstance(data.get(k), Mapping) for k in ("history", "log", "logs", "metrics")):
            return _rows(
                next(data[k] for k in ("history", "log", "logs", "metrics") if isinstance(data.get(k), Mapping))
            )
        return rows
    return flat(data)


def flat(records: Sequence[Any]) -> list[dict[str, float]]:
    """Records with their numbers alone; a dict inside a record is unfolded: {"train": {"loss": 1}} is "train/loss"."""
    return [row for record in records if isinstance(record, Mapping) and (row := _unfolded(record))]


def _unfolded(record: Mapping[str, Any], under: str = "") -> dict[str, float]:
    row: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            row.update(_unfolded(value, f"{under}{name}/"))
        elif (v := number(value)) is not None:
            row[f"{under}{name}"] = v
    return row
