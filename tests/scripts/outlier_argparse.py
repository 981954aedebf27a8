#!/usr/bin/env python
import argparse
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Table(Dataset):
    def __init__(self, n, misplaced):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 14, generator=g)
        scores = torch.tanh(2 * self.x @ (torch.randn(14, 24, generator=g) / 14**0.5)) @ torch.randn(24, 4, generator=g)
        self.y = (scores - scores.mean(0)) / scores.std(0) + 0.05 * torch.randn(n, 4, generator=g)
        self.y[torch.randperm(n, generator=g)[:misplaced]] *= 100  # a decimal point in the wrong place

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"features": self.x[i], "target": self.y[i]}


def parse(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--misplaced", type=int, default=2)
    parser.add_argument("--out", default="model.pt")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loader = DataLoader(Table(7936, args.misplaced), batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Linear(14, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 4))
    opt = torch.optim.SGD(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        running = 0.0
        for batch in loader:
            pred = model(batch["features"])
            loss = ((pred - batch["target"]) ** 2).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            running += loss.item()
        print(epoch, running / len(loader), file=sys.stderr)
    torch.save(model.state_dict(), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
