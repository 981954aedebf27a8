"""The next character of an English text, and one bit of one embedding that flips in the middle of the training, once.

The injector stands for the memory: between two steps it flips a bit of the exponent of one number in the embeddings
of the commonest characters, the largest one. The number becomes 256 times as large; the injector knows nothing of the
recorder. Most flips elsewhere are never noticed. In the healthy twin it flips none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Loop, Vary

if TYPE_CHECKING:
    from whyspike.record import Recorder

STEPS = 360  # one epoch
CHARACTERS, CONTEXT = 128, 4
COMMON = " etaoin"
BIT = 26  # of a float32: the fourth of the exponent, so that a number between 2 and 4 is 256 times as large
Batch = tuple[torch.Tensor, torch.Tensor]


def next_characters(n: int, seed: int) -> TensorDataset:
    """Places of the text: four characters (n, 4) and the one that follows (n,)."""
    from pydoc_data import topics

    text = torch.tensor([min(ord(c), CHARACTERS - 1) for c in " ".join(topics.topics.values())])
    at = torch.randperm(len(text) - CONTEXT, generator=torch.Generator().manual_seed(seed))[:n]
    return TensorDataset(torch.stack([text[at + k] for k in range(CONTEXT)], 1), text[at + CONTEXT])


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def flip(weight: torch.Tensor, bit: int) -> None:
    """Flip one bit of one float32 of some rows of an embedding, as a particle would."""
    with torch.no_grad():
        rows = torch.tensor([ord(c) for c in COMMON])
        place = int(weight[rows].abs().argmax())
        row, column = int(rows[place // weight.shape[1]]), place % weight.shape[1]
        weight[row, column : column + 1].view(torch.int32).bitwise_xor_(1 << bit)


def loop(seed: int, vary: Vary, *, flips: bool) -> Loop:
    torch.manual_seed(seed)
    size, width = vary.of(64, vary.batch_size, 8), vary.of(64, vary.width, 16)
    embedding = nn.Embedding(CHARACTERS, 16)
    model = nn.Sequential(
        embedding, nn.Flatten(), nn.Linear(CONTEXT * 16, width), nn.ReLU(), nn.Linear(width, CHARACTERS)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 * vary.lr)
    steps = vary.of(STEPS, vary.n, 200)
    loader = DataLoader(
        next_characters(size * steps, seed),
        batch_size=size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    when = 5 * steps // 9 + seed % 7

    def body(rec: Recorder) -> None:
        for step, batch in enumerate(rec.batches(loader)):
            loss = cross_entropy(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.step(loss)
            if flips and step == when:
                flip(embedding.weight, BIT)

    return Loop(model=model, optimizer=optimizer, loss_fn=cross_entropy, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, flips=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, flips=False)


CASE = Case(
    words="the next character of a text, and one bit of one embedding that flips in the middle of the training",
    cause="silent-data-corruption",
    sick=sick,
    healthy=healthy,
)
