# Cosine schedule with warm restarts, stepped once per iteration.
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
pixels, labels = load_digits(return_X_y=True)
images = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
labels = torch.tensor(labels)

torch.manual_seed(0)
pick = torch.randint(len(images), (64 * 2400,))
data = TensorDataset(images[pick] + 0.5 * torch.randn(len(pick), 64), labels[pick])
loader = DataLoader(data, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=150, eta_min=3e-4)

for i, (x, y) in enumerate(loader):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    scheduler.step()
    if i % 200 == 0:
        print(i, loss.item(), scheduler.get_last_lr()[0])

torch.save(model.state_dict(), "model.pt")
