"""Reads what `whyspike.watch` wrote. numpy only; works while the run is still being written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from whyspike.errors import UnreadableRun
from whyspike.logs.assemble import Asked
from whyspike.logs.source import Source
from whyspike.runfolder import FORMAT, FRAMES, HEADER, VERSION, capsule_paths, frames, read_trials, unpack
from whyspike.types import Mark, Note, Run, Series

NAME = "whyspike"
SHORT = 64  # steps: the window that an event's height is measured against


def sniff(path: Path) -> bool:
    """Whether this is a run folder of whyspike, whole or not."""
    path = Path(path)
    return path.is_dir() and ((path / FRAMES).is_file() or _is_ours(path / HEADER))


def _is_ours(header: Path) -> bool:
    try:
        return json.loads(header.read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UnreadableRun: there is no run in it; the message says what was found.
    """
    path = Path(path)
    facts = _header(path)
    steps: list[dict[str, np.ndarray]] = []
    points: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    names: dict[str, list[str]] = {}
    marks: list[Mark] = []
    notes: list[Note] = []
    source = frames(path / FRAMES)
    while True:
        try:
            frame = next(source)
        except StopIteration as end:
            if end.value:
                notes.append(Note(id="truncated-tail", text=f"{end.value}; what was recorded before it is here"))
            break
        kind = frame.get("kind")
        if kind == "steps":
            steps.append(_steps(frame))
        elif kind == "signal":
            points.setdefault(frame["name"], []).append((unpack(frame["step"]), unpack(frame["value"])))
        elif kind == "names":
            names[frame["name"]] = frame["columns"]
        elif kind == "table" and frame["name"] in names:
            columns = names[frame["name"]]
            table = unpack(frame["value"]).reshape(-1, len(columns))
            for j, column in enumerate(columns):
                points.setdefault(f"{frame['name']}/{column}", []).append((unpack(frame["step"]), table[:, j]))
        elif kind == "mark":
            marks.append(Mark(frame["step"], frame["name"], frame["data"]))
            if frame["name"] == "resumed":
                lost = _cut(frame["step"], steps, points, marks)
                if lost:
                    text = f"the training was resumed at step {frame['step']}; {lost} steps recorded beyond it are left out"
                    notes.append(Note(id="resume-overlap", text=text))
    if not steps:
        raise UnreadableRun(
            f"{path} holds a header but no training step; call rec.step(loss) once after every optimizer.step() and "
            "let the training run for at least a second"
        )
    return _run(path, facts, steps, points, marks, notes)


def _cut(
    first: int,
    steps: list[dict[str, np.ndarray]],
    points: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    marks: list[Mark],
) -> int:
    """Leave out what lies at or after a step: the training went on from before it. Returns how many steps that were."""
    lost = 0
    while steps and int(steps[-1]["step"][-1]) >= first:
        last = steps.pop()
        kept = int(np.sum(last["step"] < first))
        lost += len(last["step"]) - kept
        if kept:
            count = int(last["ids_count"][:kept].sum()) if "ids_count" in last else 0
            steps.append({k: v[: count if k == "ids" else kept] for k, v in last.items()})
            break
    for name, parts in points.items():
        points[name] = [(s[s < first], v[s < first]) for s, v in parts]
    marks[:] = [m for m in marks if m.step <= first or m.name in ("resumed", "facts")]
    return lost


def _header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UnreadableRun(f"{path} does not exist; give the folder that whyspike.watch wrote, as rec.path says it")
    if not path.is_dir() or not any(path.iterdir()):
        what = "an empty folder" if path.is_dir() else "a file"
        raise UnreadableRun(f"{path} is {what}; a recorded run is a folder with {HEADER} and {FRAMES} in it")
    missing = [name for name in (HEADER, FRAMES) if not (path / name).is_file()]
    if missing:
        raise UnreadableRun(
            f"{path} is no run folder of whyspike: there is no {' and no '.join(missing)} in it; give the folder that "
            "rec.path says"
        )
    try:
        facts = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableRun(f"{path / HEADER} is damaged ({error}); the header cannot be rebuilt") from error
    if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
        raise UnreadableRun(f"{path / HEADER} was not written by whyspike")
    if facts.pop("version", None) != VERSION:
        raise UnreadableRun(
            f"{path} has another format version than {VERSION}; read it with the whyspike that wrote it"
        )
    return facts


def _steps(frame: dict[str, Any]) -> dict[str, np.ndarray]:
    columns = {name: unpack(column) for name, column in frame["columns"].items()}
    columns["step"] = np.arange(frame["first"], frame["first"] + len(columns["loss"]), dtype=np.int64)
    return columns


def _column(steps: list[dict[str, np.ndarray]], name: str, dtype: str = "i8") -> np.ndarray | None:
    if not all(name in frame for frame in steps):
        return None
    return np.concatenate([frame[name].astype(dtype) for frame in steps])


def _ids(steps: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, ...] | None:
    if not all("ids" in frame for frame in steps):
        return None
    found: list[np.ndarray] = []
    for frame in steps:
        ends = np.cumsum(frame["ids_count"].astype(np.int64))[:-1]
        found.extend(np.split(frame["ids"].astype(np.int64), ends))
    return tuple(found)


def _signals(
    steps: list[dict[str, np.ndarray]], points: dict[str, list[tuple[np.ndarray, np.ndarray]]]
) -> dict[str, Series]:
    signals: dict[str, Series] = {}
    for name in ("clip_norm", "clip_max_norm"):
        for frame in steps:
            if name in frame:
                points.setdefault(name, []).append((frame["step"], frame[name]))
    for name, parts in points.items():
        step = np.concatenate([p[0].astype(np.int64) for p in parts])
        value = np.concatenate([p[1].astype(np.float64) for p in parts])
        if name in ("clip_norm", "clip_max_norm"):  # nan in a step that did not clip
            step, value = step[~np.isnan(value)], value[~np.isnan(value)]
        order = np.argsort(step, kind="stable")
        step, value = step[order], value[order]
        last = np.append(step[1:] != step[:-1], True)  # logged twice in a step: the later value counts
        signals[name] = Series(step[last], value[last])
    return signals


def _run(
    path: Path,
    facts: dict[str, Any],
    steps: list[dict[str, np.ndarray]],
    points: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    marks: list[Mark],
    notes: list[Note],
) -> Run:
    loss = _column(steps, "loss", "f8")
    step = _column(steps, "step")
    assert loss is not None, "every frame has it"
    assert step is not None, "every frame has it"
    epoch, index, n_samples = _column(steps, "epoch"), _column(steps, "index"), _column(steps, "n_samples")
    if len(loss) < SHORT:
        text = f"{len(loss)} steps were recorded; an event is measured against the {SHORT} steps before it"
        notes.append(Note(id="too-short", text=text))
    for mark in marks:
        if mark.name == "facts":  # learned after the header was written
            facts.update(mark.data)
    batch_size = facts.get("step_size")
    if n_samples is not None and len(n_samples):
        batch_size = Counter(n_samples.tolist()).most_common(1)[0][0] or None
    return Run(
        source=str(path),
        reader=NAME,
        step=step,
        loss=loss,
        epoch=epoch,
        index=index,
        n_samples=n_samples,
        sample_ids=_ids(steps),
        lr=_column(steps, "lr", "f8"),
        signals=_signals(steps, points),
        steps_per_epoch=_steps_per_epoch(epoch, index, facts),
        batch_size=batch_size if isinstance(batch_size, int) else None,
        facts=facts,
        capsules=tuple(capsule_paths(path)),
        trials=read_trials(path),
        marks=tuple(marks),
        notes=tuple(notes),
    )


def _steps_per_epoch(epoch: np.ndarray | None, index: np.ndarray | None, facts: dict[str, Any]) -> int | None:
    """The most frequent length of a finished epoch; before one has finished, what the loader promised."""
    if epoch is not None and index is not None:
        ends = np.flatnonzero(epoch[1:] != epoch[:-1])
        if len(ends):
            return Counter((index[ends] + 1).tolist()).most_common(1)[0][0]
    promised = facts.get("steps_per_epoch")
    return promised if isinstance(promised, int) else None


class _Reader:
    """The format among the others: a folder that holds one run."""

    NAME = NAME

    def sniff(self, source: Source) -> float:
        return 1.0 if source.is_folder and sniff(source.path) else 0.0

    def read(self, source: Source, asked: Asked) -> tuple[Run, ...]:
        return (read(source.path),)


READER = _Reader()
