"""model.train() once per epoch, an evaluation in its middle that leaves eval mode on."""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, n, seed):
        pixels, labels = load_digits(return_X_y=True)
        g = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(labels), (n,), generator=g)
        self.x = ((torch.tensor(pixels, dtype=torch.float32) - 5) / 6)[pick]
        self.y = torch.tensor(labels)[pick]
        self.g = g

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + torch.randn(64, generator=self.g), self.y[i]


@torch.no_grad()
def validate(model, loader, criterion):
    model.eval()
    return sum(criterion(model(x), y).item() for x, y in loader) / len(loader)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_loader = DataLoader(Digits(128 * 100, 0), batch_size=128, shuffle=True)
    val_loader = DataLoader(Digits(512, 1), batch_size=256)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(12):
        model.train()
        for i, (x, y) in enumerate(train_loader):
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i == len(train_loader) // 2 - 1:
                print(epoch, validate(model, val_loader, criterion))
    torch.save(model.state_dict(), "model.pt")


main()
