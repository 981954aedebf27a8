# A small single-shot detector on composed digits.
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


def make_scenes(n, seed=0):
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 1, 32, 32), np.float32)
    classes = np.zeros((n, 16), np.int64)
    offsets = np.zeros((n, 16, 2), np.float32)
    for i in range(n):
        for cell in rng.choice(16, rng.integers(1, 5), replace=False):
            corner = np.array(divmod(cell, 4)) * 8
            top, left = np.clip(corner + rng.integers(-1, 2, 2), 0, 24)
            digit = rng.integers(len(labels))
            patch = images[i, 0, top : top + 8, left : left + 8]
            np.maximum(patch, pixels[digit].reshape(8, 8) / 16, out=patch)
            classes[i, cell] = 1 + labels[digit]
            offsets[i, cell] = (np.array([top, left]) - corner) / 8
    return TensorDataset(torch.tensor((images - 0.1) * 3), torch.tensor(classes), torch.tensor(offsets))


class SSD(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(32, 48, 4, stride=2, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Conv2d(48, 13, 1)

    def forward(self, images):
        cells = self.head(self.backbone(images)).flatten(2).transpose(1, 2)
        return cells[..., :11], cells[..., 11:]


class MultiBoxLoss(nn.Module):
    def forward(self, scores, boxes, classes, offsets):
        positive = classes > 0
        n_pos = positive.sum().clamp(min=1)
        loss_c = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="sum") / n_pos
        loss_l = F.smooth_l1_loss(boxes[positive], offsets[positive], reduction="sum") / n_pos
        return loss_l, loss_c


def train():
    torch.manual_seed(0)
    net = SSD()
    criterion = MultiBoxLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.4, momentum=0.9)
    loader = DataLoader(make_scenes(1026), batch_size=32, shuffle=True)
    iteration = 0
    for epoch in range(12):
        for images, classes, offsets in loader:
            scores, boxes = net(images)
            loss_l, loss_c = criterion(scores, boxes, classes, offsets)
            loss = (loss_l + loss_c) / images.size(0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iteration += 1
            if iteration % 50 == 0:
                print(f"iter {iteration} || loss {loss.item():.4f}")
    torch.save(net.state_dict(), "model.pt")


train()
