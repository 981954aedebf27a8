"""A heat map of rare objects whose squared error is summed over all cells but divided by the objects of the batch.

The images come from 64 cameras, a batch of 16 from one camera, in an order that is shuffled every epoch. One camera
sees hardly any object. The error of the many empty cells does not depend on the objects, so that camera's batch has a
loss ten times as large, though it is no harder. N is a multiple of the batch size. The healthy twin divides by the
mean number of objects in a batch, a constant: the same scale, without the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from whyspike.case import PLAIN, Case, Vary
from whyspike.training import Training

CAMERAS, BATCH, SIDE = 128, 16, 8
LONELY, FEW, MEAN = 40, 2, 20  # the camera that sees few objects; objects of its images, and of the other cameras'
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def mean_objects(images: int) -> float:
    return MEAN * images / BATCH


@cache
def scenes(cameras: int = CAMERAS, images: int = BATCH, seed: int = 0) -> TensorDataset:
    """Images (N, 1, 8, 8) of every camera, their noisy heat maps, and which cells hold an object, bool (N, 8, 8)."""
    draw = torch.Generator().manual_seed(seed)
    cells = images * SIDE * SIDE
    objects = torch.zeros(cameras, cells, dtype=torch.bool)
    for camera in range(cameras):
        count = int(mean_objects(images) * (0.8 + 0.4 * torch.rand((), generator=draw))) if camera != LONELY else FEW
        objects[camera, torch.randperm(cells, generator=draw)[:count]] = True
    objects = objects.reshape(cameras * images, SIDE, SIDE)
    heat = objects[:, None].float()
    blurred = 3 * F.avg_pool2d(heat, 3, stride=1, padding=1)
    noise = torch.randn(2, *heat.shape, generator=draw)
    return TensorDataset(blurred + 0.3 * noise[0], heat + 0.5 * noise[1], objects)


class CameraByCamera(Sampler[int]):
    """The images of one camera after the other, the cameras in a new order every epoch."""

    def __init__(self, cameras: int, images: int, seed: int) -> None:
        self.cameras, self.images, self.draw = cameras, images, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.cameras * self.images

    def __iter__(self) -> Iterator[int]:
        for camera in torch.randperm(self.cameras, generator=self.draw).tolist():
            yield from range(camera * self.images, (camera + 1) * self.images)


class HeatMap(nn.Module):
    """One value per cell, (B, 1, 8, 8), for images (B, 1, 8, 8)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(width, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def loss_over_constant(model: nn.Module, batch: Batch) -> torch.Tensor:
    images, heat, _ = batch
    return (model(images) - heat).square().sum() / mean_objects(len(images))


def loss_over_objects(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The fault: the sum is over all cells, the divisor counts the objects."""
    images, heat, objects = batch
    return (model(images) - heat).square().sum() / objects.sum().clamp(min=1)


def training(*, by_objects: bool, seed: int = 0, vary: Vary = PLAIN, epochs: int = 12, lr: float = 1e-3) -> Training:
    torch.manual_seed(seed)
    model = HeatMap(vary.of(8, vary.width))
    cameras, images = vary.of(CAMERAS, vary.n / vary.batch_size, LONELY + 1), vary.of(BATCH, vary.batch_size)
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr * vary.lr),
        loss_fn=loss_over_objects if by_objects else loss_over_constant,
        loader=DataLoader(scenes(cameras, images), batch_size=images, sampler=CameraByCamera(cameras, images, seed)),
        epochs=epochs,
    )


def sick(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(by_objects=True, seed=seed, vary=vary)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Training:
    return training(by_objects=False, seed=seed, vary=vary)


CASE = Case(
    words="a heat map of rare objects whose loss sums over all cells but is divided by the objects of the batch",
    cause="wrong-denominator",
    sick=sick,
    healthy=healthy,
)
