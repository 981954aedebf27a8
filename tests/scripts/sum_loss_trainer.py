"""A Trainer class; the criterion sums over the batch."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.fc1 = nn.Linear(64, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        return self.fc2(torch.relu(self.fc1(x)))


class Trainer:
    def __init__(self, model, dataset, lr, batch_size):
        self.model = model
        self.loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.criterion = nn.CrossEntropyLoss(reduction="sum")
        self.history = []

    def train_step(self, batch):
        images, labels = batch
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def fit(self, epochs):
        for epoch in range(epochs):
            self.model.train()
            total = 0.0
            for batch in self.loader:
                total += self.train_step(batch)
            self.history.append(total / len(self.loader.dataset))
            print(f"[{epoch + 1}/{epochs}] {self.history[-1]:.5f}")


if __name__ == "__main__":
    torch.manual_seed(1)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor((digits.images - 5) / 6, dtype=torch.float32)
    rows = torch.randint(len(images), (32 * 50 + 10,))
    data = TensorDataset(images[rows] + 1.2 * torch.randn(len(rows), 8, 8), torch.tensor(digits.target)[rows])
    trainer = Trainer(Net(32), data, lr=0.02 / 32, batch_size=32)
    trainer.fit(14)
    torch.save(trainer.model.state_dict(), "model.pt")
