import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset


def get_data(n=992):
    g = torch.Generator().manual_seed(0)
    mixing = 0.6 * torch.randn(14, 14, generator=g) / 14**0.5 + 0.4 * torch.eye(14)
    x = torch.randn(n, 14, generator=g) @ mixing
    x = (x - x.mean(0)) / x.std(0)
    scores = torch.tanh(2 * x @ (torch.randn(14, 24, generator=g) / 14**0.5)) @ torch.randn(24, 4, generator=g)
    y = (scores - scores.mean(0)) / scores.std(0) + 0.05 * torch.randn(n, 4, generator=g)
    return TensorDataset(x, y)


def train_one_epoch(model, loader, loss_fn, optimizer):
    model.train()
    for xb, yb in loader:
        loss = loss_fn(model(xb), yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    torch.set_num_threads(1)
    data = get_data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 4))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    optimizer = optim.SGD(model.parameters(), lr=0.9)
    for epoch in range(48):
        last = train_one_epoch(model, loader, nn.MSELoss(), optimizer)
        if epoch % 8 == 0:
            print(f"epoch {epoch} loss {last:.4f}")
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
