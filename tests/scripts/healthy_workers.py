"""Two worker processes that augment the images; validation after every epoch."""

import random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Augmented(Dataset):
    def __init__(self, rows, train):
        pixels, labels = load_digits(return_X_y=True)
        self.images = (pixels[rows].reshape(-1, 1, 8, 8).astype(np.float32) - 5) / 6
        self.labels, self.train = labels[rows], train

    def __len__(self):
        return len(self.labels) * (4 if self.train else 1)

    def __getitem__(self, i):
        image = self.images[i % len(self.labels)]
        if self.train:
            image = np.roll(image, random.randint(-1, 1), axis=2)
            image = image + torch.randn(1, 8, 8).numpy()
        return image, int(self.labels[i % len(self.labels)])


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_loader = DataLoader(Augmented(slice(0, 1536), True), batch_size=64, shuffle=True, num_workers=2)
    val_loader = DataLoader(Augmented(slice(1536, None), False), batch_size=64)
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(4):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in val_loader:
                correct += (model(images).argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {correct / len(val_loader.dataset):.3f}")
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
