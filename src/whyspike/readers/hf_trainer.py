"""Reads the state of a Hugging Face Trainer: `trainer_state.json`, or a folder (of a run, of checkpoints) with one.

`log_history` holds one dict for each logging event. The loss in it is the mean over the steps since the one before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked, runs
from whyspike.logs.source import Source
from whyspike.logs.table import Table, columns, number
from whyspike.types import Run

NAME = "hf-trainer"
FILE = "trainer_state.json"


def sniff(source: Source) -> float:
    if source.is_folder:
        return 1.0 if _state_in(source.path) is not None else 0.0
    return 1.0 if source.head.lstrip()[:1] == b"{" and b'"log_history"' in source.content else 0.0


def read(source: Source, asked: Asked) -> tuple[Run, ...]:
    """The run of a trainer state.

    Raises:
        UnreadableRun: the file is damaged, or its history holds no loss.
    """
    if source.is_folder:
        state = _state_in(source.path)
        assert state is not None, "sniff has found it"
        source = Source(state)
    try:
        data = json.loads(source.text)
    except ValueError as error:
        raise UnreadableRun(
            f"{source.name} is a trainer state that is cut off or damaged ({error}); the state of an earlier "
            "checkpoint is whole"
        ) from error
    history = data.get("log_history") if isinstance(data, dict) else None
    if not isinstance(history, list) or not history:
        raise UnreadableRun(
            f"{source.name} is a trainer state without a log_history; set logging_steps=1 in TrainingArguments"
        )
    return runs([_table(data, history)], source=source.name, reader=NAME, asked=asked)


def _state_in(folder: Path) -> Path | None:
    """The state in a folder, else that of its latest checkpoint."""
    if (folder / FILE).is_file():
        return folder / FILE
    found = [p for p in folder.glob(f"checkpoint-*/{FILE}") if p.parent.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda p: int(p.parent.name.removeprefix("checkpoint-")), default=None)


def _table(data: dict[str, Any], history: list[Any]) -> Table:
    rows = [
        {k: v for k, value in row.items() if (v := number(value)) is not None}
        for row in history
        if isinstance(row, dict)
    ]
    found, n = columns(rows)
    loss = found.get("loss")
    every = data.get("logging_steps")
    if not isinstance(every, (int, float)) and loss is not None and len(loss.row) > 2 and "step" in found:
        steps = [rows[r].get("step", 0.0) for r in loss.row[:3].tolist()]
        every = steps[1] - steps[0]
    total = (number(data.get("global_step")), number(data.get("epoch")))
    return Table(
        columns=found,
        n_rows=n,
        roles={"step": "step", "loss": "loss", "epoch": "epoch", "lr": "learning_rate"},
        zero=1,  # a step is logged after its update
        averaged=f"each value is the mean of the {int(every)} steps before it (Trainer, logging_steps)"
        if isinstance(every, (int, float)) and every > 1
        else None,
        epoch_total=(total[0], total[1]) if total[0] is not None and total[1] is not None else None,
        facts={k: data[k] for k in ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps") if k in data},
    )
