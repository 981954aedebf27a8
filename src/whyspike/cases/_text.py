"""English text at hand without a download, for several cases: the help topics of CPython."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import torch
from torch import nn
from torch.utils.data import TensorDataset

VOCABULARY = 1024  # the most frequent words; every other one is word 0
CONTEXT = 3
TABLE = 1 << 15  # rows of the hashed contexts


@cache
def words() -> torch.Tensor:
    """The text of `pydoc_data.topics` as word numbers, int64 [115 thousand]."""
    from pydoc_data import topics

    text = " ".join(topics.topics.values()).lower()
    found = re.findall(r"[a-z_]+|[^\sa-z_]", text)
    number = {word: k + 1 for k, (word, _) in enumerate(Counter(found).most_common(VOCABULARY - 1))}
    return torch.tensor([number.get(word, 0) for word in found])


def next_words(n: int, seed: int = 0) -> TensorDataset:
    """Places of the text: three words (n, 3) and the one that follows (n,)."""
    text = words()
    draw = torch.Generator().manual_seed(seed)
    at = torch.randperm(len(text) - CONTEXT, generator=draw)[:n]
    return TensorDataset(torch.stack([text[at + k] for k in range(CONTEXT)], 1), text[at + CONTEXT])


class NextWord(nn.Module):
    """Scores (B, VOCABULARY) of the word that follows three others; one table remembers whole contexts."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.word, self.context = nn.Embedding(VOCABULARY, width), nn.Embedding(TABLE, width)
        self.scores = nn.Linear((CONTEXT + 1) * width, VOCABULARY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hashed = (x * torch.tensor([1_000_003, 10_007, 101])).sum(1) % TABLE
        return self.scores(torch.cat([self.word(x).flatten(1), self.context(hashed)], 1))
