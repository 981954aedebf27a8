"""A variational autoencoder on digits, whose KL term is annealed in cycles (Fu et al. 2019).

The plotted total is the reconstruction plus beta times KL; beta rises from 0 to 1 in the first half of every cycle,
stays there, and starts again. In the twin beta is 1 throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Loop, Vary
from whyspike.cases._data import digits
from whyspike.record import Recorder

CYCLE = 110  # steps; no multiple of an epoch
LATENT = 8


class Autoencoder(nn.Module):
    """Images (B, 64) in [0, 1] to their logits, and to mean and log variance of their code."""

    beta: torch.Tensor  # a buffer: a snapshot holds it

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, 64))
        self.register_buffer("beta", torch.ones(()))

    def terms(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction and KL, both in nats per image."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        bits = F.binary_cross_entropy_with_logits(self.decoder(code), images, reduction="none")
        return bits.sum(1).mean(), kl


def total_loss(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    assert isinstance(model, Autoencoder)
    reconstruction, kl = model.terms(batch[0])
    return reconstruction + model.beta * kl


def loop(seed: int, vary: Vary, *, cyclical: bool, cycles: int = 12) -> Loop:
    torch.manual_seed(seed)
    model = Autoencoder(vary.of(48, vary.width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 * vary.lr)
    batch_size = vary.of(64, vary.batch_size, 16)
    pixels = digits(vary.of(1400, vary.n) // batch_size * batch_size).tensors[0]
    images = TensorDataset((pixels * 6 + 5) / 16)  # back to [0, 1]
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(images, batch_size=batch_size, shuffle=True, generator=order)

    def body(rec: Recorder) -> None:
        step = 0
        while step < CYCLE * cycles:
            for batch in rec.batches(loader):
                if cyclical:
                    model.beta.fill_(min(1.0, step % CYCLE / (0.5 * CYCLE)))
                reconstruction, kl = model.terms(batch[0])
                loss = reconstruction + model.beta * kl
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                rec.log(reconstruction=reconstruction, kl=kl, beta=model.beta)
                step += 1

    return Loop(model=model, optimizer=optimizer, loss_fn=total_loss, body=body)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    """The telling run."""
    return loop(seed, vary, cyclical=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, cyclical=False)


CASE = Case(
    words="a variational autoencoder on digits whose KL term is annealed in cycles; the total of both is plotted",
    cause="mixed-loss-terms",
    sick=sick,
    healthy=healthy,
)
