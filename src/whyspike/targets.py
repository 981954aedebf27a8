"""TARGET on the command line: `file.py:function`, or a recorded run that names one."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whyspike.errors import BadTraining, NotReplayable
from whyspike.script import Command

if TYPE_CHECKING:
    from whyspike.training import Training

EXAMPLE = "`whyspike prove train.py:make_training`, where make_training() returns a whyspike.Training"


def resolve(target: str) -> Training | Callable[..., Training]:
    """What TARGET names: a function that builds a `Training`, or a `Training` that a file holds. Runs the file.

    Raises:
        BadTraining: there is no such file or function, or the file raised.
        NotReplayable: the recorded run does not name what it trained.
    """
    file, colon, name = target.rpartition(":")
    if colon and (file.endswith(".py") or Path(file).is_file()):
        return load(Path(file), name)
    path = Path(target)
    if path.is_dir():
        return _of_run(path)
    if path.suffix == ".py" and path.is_file():
        raise BadTraining(f"{target} names a file and no function in it; write {EXAMPLE}")
    if path.is_file():
        raise BadTraining(f"{target} is neither a Python file nor the folder of a recorded run; write {EXAMPLE}")
    raise BadTraining(f"there is no file or folder named {target}; write {EXAMPLE}")


def script(target: str, arguments: Sequence[str] = ()) -> tuple[Command, Path] | None:
    """The script that TARGET names, itself or as a recorded run of it, and the folder it runs in; None for neither.

    Raises:
        BadTraining: the script of the run is not there any more.
    """
    path = Path(target)
    if path.suffix == ".py" and path.is_file():
        return Command(str(path), tuple(arguments)), Path.cwd()
    header = path / "run.json"
    if not header.is_file():
        return None
    try:
        facts = json.loads(header.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    words = facts.get("command") if isinstance(facts, dict) else None
    if not words:
        return None
    module, cwd = words[0] == "-m", Path(facts.get("cwd", "."))
    name, *given = words[1:] if module else words
    if not cwd.is_dir() or not (module or (cwd / name).is_file()):
        raise BadTraining(f"the script {cwd / name} of the run {target} is not there any more; name it: {EXAMPLE}")
    return Command(name, tuple(arguments or given), module), cwd


def stored(target: str) -> str | None:
    """The target as a run folder keeps it, so that it still names the same file elsewhere. None for a recorded run."""
    file, colon, name = target.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if colon and Path(file).is_file() else None


def load(file: Path, name: str) -> Any:
    """Run the file as a module, with its folder on the search path as Python does, and take `name` from it.

    Raises:
        BadTraining: there is no such file, it raised, or it holds no function of that name.
    """
    if not file.is_file():
        raise BadTraining(f"there is no file named {file}; write {EXAMPLE}")
    module = _module(file.resolve())
    found = getattr(module, name, None) if name.isidentifier() else None
    from whyspike.training import Training

    if callable(found) or isinstance(found, Training):
        return found
    if hasattr(module, name):
        raise BadTraining(
            f"{name} in {file} is a {type(found).__name__}; it must be a function that returns a whyspike.Training"
        )
    functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    defines = f"it defines {', '.join(functions)}" if functions else "it defines no functions"
    raise BadTraining(f"{file} has no function named {name!r}; {defines}")


def _module(file: Path) -> Any:
    # The module's own name, so that workers can import it again; another one where that would hide a module.
    taken = file.stem in sys.stdlib_module_names or importlib.util.find_spec(file.stem) is not None
    name = f"target_{file.stem}" if taken or not file.stem.isidentifier() else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadTraining(f"{file} is not a Python file; write {EXAMPLE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except SystemExit as stop:
        raise BadTraining(
            f"{file.name} ended with sys.exit({stop.code!r}) while it was imported; put what it does when it is run "
            'under `if __name__ == "__main__":`'
        ) from stop
    except Exception as error:
        line = f", line {error.lineno}," if isinstance(error, SyntaxError) else ""
        raise BadTraining(
            f"{file.name}{line} raised {type(error).__name__}: {error}; the file must be importable: put what it does "
            'when it is run under `if __name__ == "__main__":`'
        ) from error
    return module


def _of_run(folder: Path) -> Any:
    header = folder / "run.json"
    if not header.is_file():
        raise NotReplayable(f"the folder {folder} holds no recorded run (it has no run.json); write {EXAMPLE}")
    try:
        facts = json.loads(header.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotReplayable(f"the header {header} cannot be read ({error}); write {EXAMPLE}") from error
    target = facts.get("target") if isinstance(facts, dict) else None
    if not isinstance(target, str):
        raise NotReplayable(
            f"the run {folder} does not name what it trained, so it cannot be trained again; write {EXAMPLE}, or "
            "prove it inside the training with rec.diagnose(prove=True)"
        )
    file, _, name = target.rpartition(":")
    return load(Path(file), name)
