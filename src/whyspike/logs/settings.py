"""What a configuration beside a log says of its epochs: how many samples, how many in a batch, how many steps.

Trainings leave their settings in the folder of their log: Lightning's `hparams.yaml`, Hydra's `.hydra/config.yaml`,
W&B's `files/config.yaml`, a `config.json` of one's own. A value counts where only one thing can be meant: names that
people give to nothing else, one value in all the files, and no hint that a batch is only a part of a step (several
devices, accumulated gradients). What is not clear is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from whyspike.form import count
from whyspike.logs.source import Source
from whyspike.logs.table import number

FILES = (
    "hparams.yaml", "config.yaml", "config.yml", "args.yaml", "opt.yaml", "params.yaml", "config.json", "args.json",
    "hparams.json", "params.json", ".hydra/config.yaml", "files/config.yaml", "all_results.json", "train_results.json",
)  # fmt: skip
RESULTS = ("all_results.json", "train_results.json")  # of the Hugging Face example scripts
NOTHING = ("", "null", "None", "~", "false", "true", "{}", "[]")
MOST = 1e15  # no count is higher
LARGEST = 1_000_000  # bytes; no settings that a person writes are longer
LENGTH = frozenset({"steps per epoch", "updates per epoch", "train steps per epoch", "num steps per epoch"})
BATCHES = frozenset({"iters per epoch", "iterations per epoch", "batches per epoch", "num batches per epoch"})
BATCH = frozenset({"batch size", "train batch size", "batchsize", "bs"})
WHOLE = frozenset({"global batch size", "total batch size", "total train batch size", "effective batch size"})
SAMPLES = frozenset(
    {
        "dataset size", "train dataset size", "train set size", "trainset size", "num train samples",
        "n train samples", "num train examples", "n train examples", "num training samples", "len train dataset",
    }
)  # fmt: skip
PARTS = frozenset(
    {
        "gradient accumulation steps", "accumulate grad batches", "grad accum steps", "grad accum", "accum iter",
        "accumulation steps", "gradient accumulation", "accumulate", "update freq", "world size", "devices", "gpus",
        "num gpus", "n gpus", "n gpu", "ngpu", "num nodes", "nproc per node", "num processes", "data parallel size",
        "num devices",
    }
)  # fmt: skip
ASIDE = frozenset({"val", "valid", "validation", "eval", "evaluation", "test", "predict", "inference", "dev"})
_LINE = re.compile(r"^(\s*)([\w.\-/]+)\s*:(?:\s+(.*?))?\s*$")

Held = dict[str, list[tuple[str, float]]]  # by part: where it stands, and the value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the files beside a log say; None where they do not, or not clearly."""

    steps_per_epoch: float | None = None
    batch_size: int | None = None  # samples in an update
    dataset_size: int | None = None  # samples in an epoch
    said: str = ""  # which file, and the names in it

    @property
    def epoch_length(self) -> tuple[float, str] | None:
        """Updates in an epoch, and where they come from."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch, self.said
        if self.dataset_size is not None and self.batch_size is not None:
            return float(ceil(self.dataset_size / self.batch_size)), self.said
        return None

    def but(self, batch_size: int | None, dataset_size: int | None) -> Settings:
        """The settings with what a person says in place of theirs."""
        asked = [f"--batch-size {count(batch_size)}"] if batch_size else []
        asked += [f"--dataset-size {count(dataset_size)}"] if dataset_size else []
        return replace(
            self,
            batch_size=batch_size or self.batch_size,
            dataset_size=dataset_size or self.dataset_size,
            said=" and ".join([self.said, *asked]),
        )


def beside(source: Source) -> Settings | None:
    """The settings beside a log; None where there are none, or none that say anything of its epochs."""
    if not source.on_disk:
        return None
    folder = source.path if source.is_folder else source.path.parent
    held: Held = {}
    for name in FILES:
        path = folder / name
        try:
            if path == source.path or not path.is_file() or path.stat().st_size > LARGEST:
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        _gather(held, name, _of_json(text) if name.endswith(".json") else _of_yaml(text))
    return _of(held)


def of_values(values: Mapping[str, object], name: str) -> Settings | None:
    """The settings that a log itself holds, e.g. W&B's config. None where they say nothing of its epochs."""
    held: Held = {}
    _gather(held, name, _leaves(values, ()))
    return _of(held)


def _gather(held: Held, name: str, found: Iterable[tuple[tuple[str, ...], object]]) -> None:
    for keys, raw in found:
        if isinstance(raw, bool) or raw is None or raw in NOTHING:
            continue
        # W&B puts every setting into a dict of its own: {"batch_size": {"desc": null, "value": 32}}.
        named = keys[:-1] if len(keys) > 1 and keys[-1] == "value" else keys
        part, value = _part(named, of_results=name in RESULTS), number(raw)
        if value is None or not 0 < value < MOST or value != int(value):
            if part != "parts":
                continue
            value = -1.0  # `auto`, a list of devices: more than one, for all that is known
        if part is not None:
            held.setdefault(part, []).append((f"{name}: {'.'.join(named)} {count(int(value))}", value))


def _of(held: Held) -> Settings | None:
    one = {part: values[0] for part, values in held.items() if len({v for _, v in values}) == 1}
    split = any(v != 1 for _, v in held.get("parts", []))
    names = [part for part in ("length", "whole", "samples") if part in one]
    batch = one.get("whole")
    if batch is None and not split and "whole" not in held:
        batch = one.get("batch")
        names += ["batch"] if batch is not None else []
    length = one.get("length")
    if length is None and not split and "length" not in held:
        length = one.get("batches")
        names += ["batches"] if length is not None else []
    samples = one.get("samples")
    if not names:
        return None
    return Settings(
        steps_per_epoch=length[1] if length else None,
        batch_size=int(batch[1]) if batch else None,
        dataset_size=int(samples[1]) if samples else None,
        said=" and ".join(one[part][0] for part in names),
    )


def _part(keys: tuple[str, ...], *, of_results: bool) -> str | None:
    """What a value is: the length of an epoch, a batch, the samples, or a sign that a step has several batches."""
    names = [" ".join(re.sub(r"[^a-z0-9]+", " ", key.lower()).split()) for key in keys]
    if any(ASIDE & set(name.split()) for name in names):
        return None
    last = names[-1]
    if of_results:
        return "samples" if last == "train samples" and len(names) == 1 else None
    groups = (("length", LENGTH), ("batches", BATCHES), ("whole", WHOLE), ("batch", BATCH), ("samples", SAMPLES))
    return next((part for part, own in groups if last in own), None) or ("parts" if last in PARTS else None)


def _of_json(text: str) -> Iterator[tuple[tuple[str, ...], object]]:
    try:
        yield from _leaves(json.loads(text), ())
    except (ValueError, RecursionError):
        return


def _leaves(held: object, under: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(held, dict):
        for key, value in held.items():
            yield from _leaves(value, (*under, str(key)))
    elif under:
        yield under, str(held) if isinstance(held, list) else held


def _of_yaml(text: str) -> Iterator[tuple[tuple[str, ...], object]]:
    """The values of nested `key: value` lines: as much of YAML as settings need, without a parser for all of it."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _LINE.match(line.split(" #")[0])
        if match is None:
            continue
        deep, key, value = len(match[1]), match[2], match[3]
        while above and above[-1][0] >= deep:
            above.pop()
        above.append((deep, key))
        if value:
            yield tuple(name for _, name in above), value.strip("'\"")
