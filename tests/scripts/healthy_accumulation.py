"""Accumulation over windows that are all full, clipping, a schedule, a validation loop without eval mode."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset


def noisy(n, seed):
    pixels, labels = load_digits(return_X_y=True)
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(labels), (n,), generator=g)
    x = ((torch.tensor(pixels, dtype=torch.float32) - 5) / 6)[pick]
    return TensorDataset(x + torch.randn(n, 64, generator=g), torch.tensor(labels)[pick])


def train(model, loader, val, optimizer, scheduler, accumulate=4):
    for epoch in range(2):
        for k, (x, y) in enumerate(loader, start=1):
            loss = F.cross_entropy(model(x), y) / accumulate
            loss.backward()
            if k % accumulate == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        with torch.no_grad():
            print(epoch, sum(F.cross_entropy(model(x), y).item() for x, y in val) / len(val))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loader = DataLoader(noisy(16 * 4 * 300, 0), batch_size=16, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = OneCycleLR(optimizer, max_lr=3e-3, total_steps=600)
    train(model, loader, DataLoader(noisy(512, 1), 128), optimizer, scheduler)
    torch.save(model.state_dict(), "model.pt")
