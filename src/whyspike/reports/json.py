"""The published document (schema_version 1): written, read back, and described by its schema.

`python -m whyspike.reports.json [FOLDER]` writes the schema files (default: `docs/schema`).
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from whyspike.errors import UnreadableRun
from whyspike.types import SCHEMA_VERSION, Diagnosis, Preflight

PICTURES = frozenset({"record", "trials", "missing"})  # fields of Diagnosis that serve the pictures, not the document

# ------------------------------------------------------------------------------- written


def document(diagnosis: Diagnosis) -> dict[str, Any]:
    """The published fields of a diagnosis, as plain dicts, lists, strings and numbers; non-finite numbers are None."""
    fields = [f.name for f in dataclasses.fields(diagnosis) if f.name not in PICTURES]
    return msgspec.json.decode(_encode({name: getattr(diagnosis, name) for name in fields}))


def render(diagnosis: Diagnosis, indent: int | None = 2) -> str:
    """The document of one run. Non-finite numbers become null; `indent=None` writes one line."""
    return _text(document(diagnosis), indent)


def render_many(
    diagnoses: Sequence[Diagnosis], comparison: Mapping[str, Any] | None = None, indent: int | None = 2
) -> str:
    """The document of several runs, with what sets them apart."""
    runs = [document(d) for d in diagnoses]
    return _text({"schema_version": SCHEMA_VERSION, "runs": runs, "comparison": comparison}, indent)


def render_preflight(preflight: Preflight, indent: int | None = 2) -> str:
    """The document of `whyspike check`."""
    return _text(preflight, indent)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(
        value, enc_hook=lambda scalar: scalar.item()
    )  # numpy scalars; msgspec writes nan as null


def _text(value: Any, indent: int | None) -> str:
    encoded = _encode(value)
    return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()


# ------------------------------------------------------------------------------- read


def load(text: str | bytes) -> Diagnosis:
    """The diagnosis of a document, without its pictures. A null where a number belongs is read as nan.

    Raises:
        UnreadableRun: the text is not a document of one run in schema_version 1.
    """
    try:
        data = msgspec.json.decode(text)
        if isinstance(data, dict) and data.get("schema_version") != SCHEMA_VERSION:
            raise UnreadableRun(
                f"a diagnosis of schema_version {data.get('schema_version')!r} was given; "
                f"this version reads {SCHEMA_VERSION}: write it anew with `whyspike diagnose PATH --format json`"
            )
        found = msgspec.convert(_nan_for_null(PUBLISHED, data), PUBLISHED)
    except msgspec.MsgspecError as error:
        raise UnreadableRun(
            f"the text is not a diagnosis of whyspike ({error}); `whyspike diagnose PATH --format json` writes one"
        ) from error
    return Diagnosis(**{f.name: getattr(found, f.name) for f in dataclasses.fields(found)})


def _nan_for_null(kind: Any, value: Any) -> Any:
    """`value` with nan in place of None wherever its type is a plain float."""
    arguments = get_args(kind)
    if kind is float:
        return float("nan") if value is None else value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return {name: _nan_for_null(hints.get(name), item) for name, item in value.items()}
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else _nan_for_null(next(a for a in arguments if a is not type(None)), value)
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if Ellipsis in arguments else [*arguments, *[None] * len(value)]
        return [_nan_for_null(k, item) for k, item in zip(kinds, value, strict=False)]
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {name: _nan_for_null(arguments[1], item) for name, item in value.items()}
    return value


# ------------------------------------------------------------------------------- described


def _published(kind: type, doc: str, **replaced: Any) -> Any:
    """`kind` without its pictures and with its version fixed."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in PICTURES}
    fields = [(name, hint) for name, hint in ({**hints, **replaced}).items()]
    made = dataclasses.make_dataclass(kind.__name__, fields, frozen=True, kw_only=True)
    made.__doc__ = doc
    return made


PUBLISHED = _published(Diagnosis, "What whyspike says about one run.", schema_version=Literal[1])
CHECKED = _published(Preflight, "What `whyspike check` says about a setup.", schema_version=Literal[1])
MANY = dataclasses.make_dataclass(
    "Diagnoses",
    [("schema_version", Literal[1]), ("runs", tuple[PUBLISHED, ...]), ("comparison", dict[str, Any] | None)],
    frozen=True,
    kw_only=True,
)
MANY.__doc__ = "What whyspike says about several runs."
DOCUMENTS = {"diagnosis": PUBLISHED, "diagnoses": MANY, "check": CHECKED}


def schema(name: Literal["diagnosis", "diagnoses", "check"] = "diagnosis") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document, generated from the types."""
    made = msgspec.json.schema(DOCUMENTS[name])
    for definition in made["$defs"].values():
        # every field is always written; a reader must accept fields that a later version adds
        definition["required"] = list(definition["properties"])
        if "description" in definition:  # a docstring, which msgspec takes its indentation from since 0.23 alone
            definition["description"] = inspect.cleandoc(definition["description"])
        for part in definition["properties"].values():
            part.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_null_for_nan(made)}


def _null_for_nan(part: Any) -> Any:
    """The schema with null allowed wherever a number is: nan and infinities are written as null."""
    if isinstance(part, list):
        return [_null_for_nan(item) for item in part]
    if not isinstance(part, dict):
        return part
    if all(set(option) == {"type"} for option in part.get("anyOf", [{}])):
        kinds = sorted({option["type"] for option in part["anyOf"]} - {"null"})
        return {"type": [*kinds, "null"]}
    made = {key: _null_for_nan(item) for key, item in part.items()}
    return {**made, "type": ["number", "null"]} if made.get("type") == "number" else made


def write_schemas(folder: Path) -> list[Path]:
    """Write one file per document and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in DOCUMENTS:
        path = folder / f"{name}.schema.json"
        path.write_text(_text(schema(name), 2) + "\n", encoding="utf-8")  # type: ignore[arg-type]
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_schemas(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schema")):
        sys.stdout.write(f"{written}\n")
