"""One arm of an experiment from scratch: a script in this process, with one intervention at its seams.

`python -m whyspike.arm JOB` is what `arms.py` starts. The script runs in a folder of its own, and what it writes there
is thrown away; saved files that it would put elsewhere go there, too. Standard output of the arm is not the script's.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.script import Command, run

if TYPE_CHECKING:
    from whyspike.seams import Intervention

SEED_STEP = 7919  # a prime, so that seeds of several libraries that a script counts up from do not meet


# --------------------------------------------------------------------------- what the script must not touch


def keep_inside(folder: Path) -> None:
    """Files that are opened for writing outside of the folder, or that are only linked into it, lie in it instead."""
    original = builtins.open
    inside = str(folder.resolve()) + os.sep
    kept = folder / "_elsewhere"

    def place(path: Any, mode: str) -> Any:
        if not isinstance(path, str | os.PathLike) or not set("wax+") & set(mode):
            return path
        here = os.path.abspath(path)
        if os.path.islink(here) and os.path.realpath(os.path.dirname(here)) + os.sep == inside:
            os.unlink(here)
        whole = os.path.realpath(here)
        if whole.startswith((inside, os.devnull)):
            return path
        kept.mkdir(exist_ok=True)
        return kept / f"{hashlib.sha1(whole.encode()).hexdigest()[:8]}-{os.path.basename(whole)}"  # noqa: S324

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return original(place(file, mode), mode, *args, **kwargs)

    builtins.open = opened  # type: ignore[assignment]

    def saves() -> None:
        import torch

        save = torch.save

        def saved(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            return save(obj, place(f, "w"), *args, **kwargs)

        torch.save = saved

    _torch_hooks.append(saves)


def other_seed(number: int) -> None:
    """Every seed that the script sets is another one, the same for the same number."""
    if not number:
        return
    shift = number * SEED_STEP
    plain = random.seed
    random.seed = lambda a=None, version=2: plain(a + shift if isinstance(a, int) else a, version)  # type: ignore[assignment]

    def seeds() -> None:
        import numpy as np
        import torch

        torch.manual_seed = torch.random.manual_seed = _shifted(torch.manual_seed, shift)
        np.random.seed = _shifted(np.random.seed, shift)
        np.random.default_rng = _shifted(np.random.default_rng, shift)
        torch.default_generator.manual_seed(shift)  # of a script that sets none

    _torch_hooks.append(seeds)


def _shifted(original: Callable[..., Any], shift: int) -> Callable[..., Any]:
    def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original((seed + shift) % 2**32 if isinstance(seed, int) else seed, *args, **kwargs)

    return seeded


_torch_hooks: list[Callable[[], None]] = []


# --------------------------------------------------------------------------- samples, for interventions that need some


class ArmDraws:
    """`draw(n)` gives n other training samples of the script that runs in this process; `draw.of(ids)` those."""

    watch: Any = None  # the ArmWatch of this process
    calls = 0

    def __call__(self, n: int) -> Any:
        import numpy as np

        from whyspike.errors import NotReplayable

        dataset = self._dataset()
        if dataset is None:
            raise NotReplayable("the script's loader has no dataset from which other samples could be drawn")
        type(self).calls += 1
        rng = np.random.default_rng((20_24, self.calls))
        return self.of(rng.choice(len(dataset), n, replace=n > len(dataset)))

    def of(self, ids: Any) -> Any | None:
        """The batch of these dataset indices; None where there is no dataset to index."""
        from whyspike.frozen import frozen
        from whyspike.loader_ids import data_loader
        from whyspike.loader_order import fetch

        recorder = self.watch.watched[0].recorder
        loader, dataset = data_loader(recorder.loader), self._dataset()
        if loader is None or dataset is None:
            return None
        with frozen(recorder.model):
            return fetch(dataset, loader.collate_fn, ids)

    def _dataset(self) -> Any:
        from whyspike.loader_ids import data_loader

        loader = data_loader(self.watch.watched[0].recorder.loader) if self.watch and self.watch.watched else None
        dataset = None if loader is None else loader.dataset
        return dataset if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") else None


# --------------------------------------------------------------------------- the arm itself


def execute(job: dict[str, Any]) -> dict[str, Any]:
    """Run the job's script with its intervention: losses, sample counts, and the final loss on a probe set."""
    made: list[Any] = []
    folder = Path(job["folder"])
    keep_inside(folder)
    other_seed(job["seed"])
    os.chdir(folder)

    def on_torch() -> None:
        import torch

        from whyspike.armwatch import ArmWatch
        from whyspike.hooks import Hooks

        if job.get("threads"):
            torch.set_num_threads(job["threads"])
        for hook in _torch_hooks:
            hook()
        intervention: Intervention = cloudpickle().loads(bytes.fromhex(job["intervention"]))
        watch = ArmWatch(folder / "record", intervention=intervention, events=job["events"], stop=job["stop"])
        ArmDraws.watch = watch
        made.append((Hooks(watch), watch))

    ended = run(Command(job["target"], tuple(job["arguments"]), job["module"]), on_torch=on_torch, before=job["path"])
    if not made:
        return {"error": "the script did not import torch"}
    hooks, watch = made[0]
    if ended.raised is not None and not watch.enough:
        return {"error": f"the script raised {type(ended.raised).__name__}: {ended.raised}"}
    hooks.remove()
    watch.finish("end")
    if watch.error is not None:
        return {"error": f"{type(watch.error).__name__}: {watch.error}"}
    return watch.result()


def main(path: str) -> int:
    """Run the job in the file; its result goes beside it, all or nothing."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    result = execute(job)
    target = Path(job["result"])
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, target)
    return 0


def cloudpickle() -> Any:
    """The pickler that joblib brings along: its own copy, or from version 1.6 on the package."""
    try:
        return importlib.import_module("cloudpickle")
    except ModuleNotFoundError:
        return importlib.import_module("joblib.externals.cloudpickle")


def numbers(values: Iterator[float] | list[float]) -> list[Any]:
    """Numbers as JSON has them: those that are not finite as words."""
    return [v if math.isfinite(v) else str(v) for v in values]


if __name__ == "__main__":
    from whyspike import arm  # noqa: PLW0406  by its own name, for what is loaded refers to it by that

    sys.exit(arm.main(sys.argv[1]))
