"""Comparing and noting generator states: what a loader draws decides what a replay must put back."""

from __future__ import annotations

from typing import Any

import torch

from whyspike import frozen


def same_rng(a: dict[str, Any], b: dict[str, Any], *, torch_too: bool = True) -> bool:
    """Whether two states of `frozen.rng_state` are the same; with torch_too=False those of Python and numpy alone."""
    if a["python"] != b["python"] or str(a.get("numpy")) != str(b.get("numpy")) or _key(a) != _key(b):
        return False
    if not torch_too:
        return True
    gpus = zip(a.get("cuda", ()), b.get("cuda", ()), strict=False)
    return torch.equal(a["torch"], b["torch"]) and all(torch.equal(x, y) for x, y in gpus)


def _key(state: dict[str, Any]) -> bytes:
    # str() of a state abbreviates its key
    key = state.get("numpy", {}).get("state", {}).get("key")
    return b"" if key is None else key.tobytes()


def torch_rng_state() -> dict[str, Any]:
    """Torch's generators alone: numpy's and Python's cost twenty times as much to read."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back a whole state, or one of `torch_rng_state`."""
    if "python" in state:
        frozen.restore_rng(state)
        return
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
