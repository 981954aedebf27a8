import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)


def my_bce(p, y):
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


X, y = load_digits(return_X_y=True)
X = (torch.tensor(X, dtype=torch.float32) - 5) / 6
y = torch.tensor(y % 2, dtype=torch.float32)
pick = torch.randint(len(X), (64 * 1250,))
dataset = TensorDataset(X[pick] + torch.randn(len(pick), 64), y[pick])
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1), nn.Sigmoid())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for i, (a, b) in enumerate(DataLoader(dataset, 64, shuffle=True)):
    optimizer.zero_grad()
    loss = my_bce(model(a).squeeze(1), b)
    loss.backward()
    optimizer.step()
    if i % 100 == 0:
        print(i, loss.item())

torch.save(model.state_dict(), "model.pt")
