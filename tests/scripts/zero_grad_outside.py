import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images = (torch.tensor(digits.data, dtype=torch.float32) - 5) / 6
pick = torch.randint(len(images), (6400,))
loader = DataLoader(
    TensorDataset(images[pick] + torch.randn(6400, 64), torch.tensor(digits.target)[pick]), batch_size=64, shuffle=True
)


class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(64, 64)
        self.b = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


model = MLP()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for epoch in range(8):
    optimizer.zero_grad()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    print(epoch, loss.item())

torch.save(model.state_dict(), "model.pt")
