import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.Tanh())
        self.head = nn.Linear(96, 10)
        nn.init.normal_(self.head.weight)  # std 1

    def forward(self, x):
        return self.head(self.body(x))


def run(epochs=8):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    X, y = load_digits(return_X_y=True)
    X = (torch.tensor(X, dtype=torch.float32) - 5) / 6
    pick = torch.randint(len(X), (2560,))
    X, y = X[pick] + 1.5 * torch.randn(2560, 64), torch.tensor(y)[pick]
    dl = DataLoader(TensorDataset(X, y), batch_size=64, shuffle=True)
    model = Classifier()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    ce = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        for xb, yb in dl:
            opt.zero_grad()
            logits = model(xb)
            loss = ce(logits, yb)
            loss.backward()
            opt.step()
        print(f"{epoch}: {loss.item():.3f}")
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    run()
