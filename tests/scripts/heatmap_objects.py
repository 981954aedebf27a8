"""CenterNet-like heat map; the sum is divided by the number of objects in the batch."""
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset

CAMERAS, BATCH, SIDE, LONELY = 128, 16, 8, 40


def scenes():
    g = torch.Generator().manual_seed(0)
    cells = BATCH * SIDE * SIDE
    objects = torch.zeros(CAMERAS, cells, dtype=torch.bool)
    for camera in range(CAMERAS):
        count = int(20 * (0.8 + 0.4 * torch.rand((), generator=g))) if camera != LONELY else 2
        objects[camera, torch.randperm(cells, generator=g)[:count]] = True
    objects = objects.reshape(CAMERAS * BATCH, SIDE, SIDE)
    heat = objects[:, None].float()
    blurred = 3 * F.avg_pool2d(heat, 3, stride=1, padding=1)
    noise = torch.randn(2, *heat.shape, generator=g)
    return TensorDataset(blurred + 0.3 * noise[0], heat + 0.5 * noise[1], objects)


class CameraSampler(Sampler):
    def __init__(self):
        self.g = torch.Generator().manual_seed(0)

    def __len__(self):
        return CAMERAS * BATCH

    def __iter__(self):
        for camera in torch.randperm(CAMERAS, generator=self.g).tolist():
            yield from range(camera * BATCH, (camera + 1) * BATCH)


class HeatMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.conv2(F.leaky_relu(self.conv1(x), 0.1))


def heat_loss(pred, target, mask):
    num_pos = mask.float().sum()
    loss = torch.pow(pred - target, 2).sum()
    if num_pos == 0:
        return loss
    return loss / num_pos


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = HeatMap()
    optim = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = DataLoader(scenes(), batch_size=BATCH, sampler=CameraSampler())
    for epoch in range(12):
        losses = []
        for image, heat, mask in loader:
            loss = heat_loss(model(image), heat, mask)
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.detach())
        print("epoch", epoch, float(torch.stack(losses).mean()))
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
