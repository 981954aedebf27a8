"""A network with BatchNorm; the last batch of every epoch has two images."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Augmented(Dataset):
    def __init__(self, n):
        pixels, labels = load_digits(return_X_y=True)
        self.g = torch.Generator().manual_seed(0)
        pick = torch.randint(len(labels), (n,), generator=self.g)
        self.x = ((torch.tensor(pixels, dtype=torch.float32) - 5) / 6)[pick]
        self.y = torch.tensor(labels)[pick]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + 0.7 * torch.randn(64, generator=self.g), self.y[i]


def block(i, o):
    return nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(block(64, 64), block(64, 64), block(64, 64), nn.Linear(64, 10))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    loader = DataLoader(Augmented(24 * 64 + 2), batch_size=64, shuffle=True)
    for epoch in range(16):
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            optimizer.step()
        print(f"{epoch:3d} {loss.item():.4f}")
    torch.save(net.state_dict(), "model.pt")
