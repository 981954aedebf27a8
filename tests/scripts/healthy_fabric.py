"""Lightning Fabric around an ordinary loop."""

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    torch.set_num_threads(1)
    seed_everything(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    pixels, labels = load_digits(return_X_y=True)
    images = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
    pick = torch.randint(len(images), (64 * 500,))
    data = TensorDataset(images[pick] + torch.randn(len(pick), 64), torch.tensor(labels)[pick])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True))
    for i, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        fabric.backward(loss)
        optimizer.step()
        if i % 100 == 0:
            fabric.print(i, loss.item())
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
