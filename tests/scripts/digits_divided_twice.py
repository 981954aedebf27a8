"""Digits, with the summed loss divided by the batch in the loss function and once more in the loop."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 48)
        self.fc2 = nn.Linear(48, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


def criterion(output, target):
    return F.cross_entropy(output, target, reduction="sum") / len(output)


torch.manual_seed(1)
torch.set_num_threads(1)
digits = load_digits()
pick = torch.randperm(1797)[:1026]
x = (torch.tensor(digits.data, dtype=torch.float32)[pick] - 5) / 6
train_set = TensorDataset(x + 0.8 * torch.randn(x.shape), torch.tensor(digits.target)[pick])
train_loader = DataLoader(train_set, batch_size=32, shuffle=True)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.6, momentum=0.9)
for epoch in range(14):
    total = 0.0
    for data, target in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(data), target) / len(data)
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch} loss {total / len(train_loader):.5f}")

torch.save(model.state_dict(), "model.pt")
