# Regression, plain loop at the top level of the file.
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)

N = 65 * 1024 + 2
x = torch.randn(N, 16)
w = torch.randn(16, 3) / 4
y = torch.tanh(2 * x @ w).sum(1, keepdim=True) + torch.randn(N, 1)
loader = DataLoader(TensorDataset(x, y), batch_size=1024, shuffle=True)

model = nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9)

for epoch in range(13):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")

torch.save(model.state_dict(), "model.pt")
