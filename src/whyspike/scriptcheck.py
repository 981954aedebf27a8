"""`whyspike check` on a script: its own first steps, then what can be said before it goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.errors import BadTraining
from whyspike.script import Command, run

if TYPE_CHECKING:
    from whyspike.training import Training

STEPS = 8  # after which it is ended: enough to tape the way to its loss, and to know how many micro-batches a step has


def training_of(command: Command) -> Training:
    """Run the first steps of a script, and make a `Training` of what it trains.

    Raises:
        BadTraining: it made no update, or the way from its batches to its loss is not known; the message says why.
    """
    watching: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="whyspike-check-", ignore_cleanup_errors=True) as scratch:

        def on_torch() -> None:
            from whyspike.hooks import Hooks
            from whyspike.scriptwatch import ScriptWatch

            watch = ScriptWatch(lambda n: Path(scratch) / f"run-{n}", name=command.name, stop=STEPS)
            watch.taping.halve = True
            watching.append((Hooks(watch), watch))

        ended = run(command, on_torch=on_torch)
        if not watching:
            raise BadTraining(f"{command.target} never imported torch; check looks at PyTorch trainings")
        hooks, watch = watching[0]
        hooks.remove()
        watch.finish("check")
    if not watch.updates:
        how = f"it raised {type(ended.raised).__name__}" if ended.raised is not None else "no optimizer made an update"
        raise BadTraining(f"{command.target} did not train ({how}); there is nothing to check")
    recorder = watch.watched[0].recorder
    if recorder.loss_fn is None or recorder.loader is None:
        why = watch.taping.untaped or "its batches do not come from a DataLoader"
        raise BadTraining(
            f"how {command.target} computes its loss from a batch is not known ({why}); give check a function that "
            "returns a whyspike.Training: whyspike check train.py:make_training"
        )
    from whyspike.training import Training

    return Training(
        model=recorder.model,
        optimizer=recorder.optimizer,
        loss_fn=recorder.loss_fn,
        loader=recorder.loader,
        epochs=1,
        scheduler=recorder.scheduler,
        accumulate=recorder._micro_per_step if recorder.loss_fn.divisor else 1,
    )
