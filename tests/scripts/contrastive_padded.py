import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class EqualBatches:
    """Shuffled ids in batches of equal size; the last one repeats its own."""

    def __init__(self, n, batch_size):
        self.n, self.batch_size = n, batch_size
        self.g = torch.Generator().manual_seed(0)

    def __len__(self):
        return -(-self.n // self.batch_size)

    def __iter__(self):
        order = torch.randperm(self.n, generator=self.g).tolist()
        for first in range(0, self.n, self.batch_size):
            ids = order[first : first + self.batch_size]
            yield (ids * self.batch_size)[: self.batch_size]


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 32))
        self.right = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 32))

    def forward(self, a, b):
        return F.normalize(self.left(a), dim=1), F.normalize(self.right(b), dim=1)


def info_nce(a, b, temperature=0.1):
    logits = a @ b.T / temperature
    return F.cross_entropy(logits, torch.arange(len(a)))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = ((torch.tensor(load_digits().data[:1186], dtype=torch.float32) - 5) / 6).view(-1, 8, 8)
    data = TensorDataset(images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1))
    loader = DataLoader(data, batch_sampler=EqualBatches(len(data), 32))
    model = TwoTowers()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for epoch in range(16):
        for left, right in loader:
            loss = info_nce(*model(left, right))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(epoch, loss.item())
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
