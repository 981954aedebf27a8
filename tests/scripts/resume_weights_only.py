"""A job that is preempted now and then; its checkpoint holds the weights alone."""

import io

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return model, torch.optim.Adam(model.parameters(), lr=0.003)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset((torch.tensor(pixels[:1792], dtype=torch.float32) - 5) / 6, torch.tensor(labels[:1792]))
    loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    model, optimizer = build()
    criterion = nn.CrossEntropyLoss()
    for epoch in range(176):
        if epoch and epoch % 16 == 0:
            checkpoint = io.BytesIO()
            torch.save(model.state_dict(), checkpoint)
            checkpoint.seek(0)
            model.load_state_dict(torch.load(checkpoint))
            optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for x, y in loader:
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(loss.item())
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
