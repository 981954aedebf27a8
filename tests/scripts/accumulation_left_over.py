"""Gradient accumulation; the window that the epoch's end cuts short is divided like a full one."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

ACCUM = 8


class NoisyDigits(Dataset):
    def __init__(self, n, noise=1.0):
        pixels, labels = load_digits(return_X_y=True)
        self.g = torch.Generator().manual_seed(0)
        pick = torch.randint(len(labels), (n,), generator=self.g)
        self.x = ((torch.tensor(pixels, dtype=torch.float32) - 5) / 6)[pick]
        self.y = torch.tensor(labels)[pick]
        self.noise = noise

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + self.noise * torch.randn(64, generator=self.g), self.y[i]


torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(NoisyDigits(16 * (ACCUM * 14 + 1)), batch_size=16, shuffle=True)

for epoch in range(30):
    optimizer.zero_grad()
    for step, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y)
        loss = loss / ACCUM
        loss.backward()
        if (step + 1) % ACCUM == 0 or step + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()

torch.save(model.state_dict(), "model.pt")
