"""Running a script under whyspike as python would run it: its name, its arguments, its path, its exit code.

Nothing heavy is imported before the script itself does: a script may set OMP_NUM_THREADS, or a seed of the hash of
strings, before it imports torch, and that must act.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whyspike.errors import BadTraining

EXAMPLE = "whyspike run train.py"
OURS = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Command:
    """What to run: a file, or with `module` the name of a module as after `python -m`, and its arguments."""

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False

    @property
    def words(self) -> str:
        return " ".join([*(("-m",) if self.module else ()), self.target, *self.arguments])

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2] if self.module else Path(self.target).stem


@dataclass(frozen=True)
class Ended:
    """How a script ended.

    `code` is its exit code as a shell would see it. `raised` is the exception that nobody caught, `interrupted` whether
    that was Ctrl-C.
    """

    code: int
    raised: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        return isinstance(self.raised, KeyboardInterrupt)


def _code_of_file(path: str) -> tuple[types.CodeType, types.ModuleType, str]:
    if os.path.isdir(path):  # a folder with a __main__.py, as python takes it
        inner = os.path.join(path, "__main__.py")
        if not os.path.isfile(inner):
            raise BadTraining(f"{path} is a folder without a __main__.py; give the script itself: {EXAMPLE}")
        code, module, _ = _code_of_file(inner)
        return code, module, path
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise BadTraining(
            f"{path} cannot be read ({error.strerror}); give the script as you would to python: {EXAMPLE}"
        ) from error
    if b"\0" in source[:4096]:
        raise BadTraining(f"{path} is not a Python script; give the script as you would to python: {EXAMPLE}")
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    return compile(source, path, "exec", dont_inherit=True), module, os.path.dirname(path)


def _code_of_module(name: str) -> tuple[types.CodeType, types.ModuleType, str]:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name += ".__main__"
            spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise BadTraining(f"there is no module named {name} ({error}); write it as after python -m") from error
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise BadTraining(f"there is no module named {name} that can be run; write it as after python -m")
    code: Any = spec.loader.get_code(name)  # type: ignore[attr-defined]
    module = types.ModuleType("__main__")
    module.__file__, module.__loader__, module.__spec__ = spec.origin, spec.loader, spec
    module.__package__ = spec.parent
    return code, module, os.getcwd()


def run(command: Command, *, on_torch: Callable[[], None], before: Sequence[str] = ()) -> Ended:
    """Run the command in this process as `__main__`, and say how it ended. Its traceback is printed as python does.

    `sys.modules["__main__"]` stays the script's, for worker processes import it by its file, and its objects live on.

    Args:
        on_torch: called once, right after the script has imported torch.
        before: folders that are put in front of the script's own on the search path.

    Raises:
        BadTraining: there is no such script.
    """
    first = sys.path[0] if sys.path else ""
    if command.module:
        sys.path[:1] = [os.getcwd()]
        try:
            code, module, folder = _code_of_module(command.target)
        except BadTraining:
            sys.path[:1] = [first]
            raise
        sys.argv[:] = [module.__file__ or command.target, *command.arguments]
    else:
        try:
            code, module, folder = _code_of_file(command.target)
        except SyntaxError as error:
            _show(error)
            return Ended(1, error)
        sys.argv[:] = [command.target, *command.arguments]
    sys.path[:1] = [*before, folder if command.module else os.path.abspath(folder)]
    module.__builtins__ = sys.modules["builtins"]  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    when_imported("torch", on_torch)
    try:
        exec(code, module.__dict__)  # noqa: S102  the script itself, as python runs it
    except SystemExit as stop:
        return Ended(_exit_code(stop))
    except KeyboardInterrupt as stop:
        _show(stop)
        return Ended(128 + signal.SIGINT, stop)
    except BaseException as error:
        _show(error)
        return Ended(1, error)
    return Ended(0)


def _exit_code(stop: SystemExit) -> int:
    """As the interpreter reads `sys.exit(…)`: a number, nothing, or words for standard error."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    sys.stderr.write(f"{stop.code}\n")
    sys.stderr.flush()
    return 1


# --------------------------------------------------------------------------- the script's own traceback


def _show(error: BaseException) -> None:
    """Print the traceback as python would, without our frames in it."""
    sys.stdout.flush()
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _without_ours(one.__traceback__)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    kept = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(OURS):
            kept.append(trace)
        trace = trace.tb_next
    made = None
    for one in reversed(kept):
        made = types.TracebackType(made, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return made


# --------------------------------------------------------------------------- when a module is imported


class _AfterImport:
    """Calls a function once a module has been imported, and finds nothing itself."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        load, then = spec.loader.exec_module, self._then

        def exec_module(module: types.ModuleType) -> None:
            load(module)
            spec.loader.__dict__.pop("exec_module", None)  # type: ignore[union-attr]
            then()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call `then` right after the module has been imported; at once where it is there already."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))  # type: ignore[arg-type]
