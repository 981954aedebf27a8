"""The files that are written are those that the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from whyspike import safefile

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32,
    torch.int64, torch.float64,
]  # fmt: skip

some = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    max_size=6,
)


@given(some, st.dictionaries(st.sampled_from(["a", "whyspike"]), st.text(st.characters(exclude_categories=["Cs"]))))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_library_reads_what_was_written(tmp_path: Path, kinds, metadata: dict[str, str]) -> None:
    tensors = {name: (torch.randn(shape) * 100).to(dtype) for name, (dtype, shape) in kinds.items()}
    file = tmp_path / "ours.safetensors"
    size = safefile.write(file, tensors, metadata, room=None)
    assert size == file.stat().st_size
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        assert (opened.metadata() or {}) == metadata


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    base = torch.arange(20.0)
    safefile.write(tmp_path / "f", {"a": base[5:10], "b": base[7:9]}, {}, room=None)
    found = load_file(tmp_path / "f")
    assert found["a"].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert found["b"].tolist() == [7.0, 8.0]


def test_a_file_that_would_be_too_large_is_not_written(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1000)}
    size = safefile.write(tmp_path / "f", tensors, {}, room=None)
    safefile.write(tmp_path / "f", tensors, {}, room=size)
    with pytest.raises(safefile.TooLarge, match=rf"{size:,} bytes .* {size - 1:,} are left"):
        safefile.write(tmp_path / "g", tensors, {}, room=size - 1)
    assert not (tmp_path / "g").exists()


def test_a_kind_that_the_format_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"x is of dtype torch\.complex128"):
        safefile.write(tmp_path / "f", {"x": torch.zeros(2, dtype=torch.complex128)}, {}, room=None)
