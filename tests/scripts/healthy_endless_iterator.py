# A loop over steps with an iterator that begins again.
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
pixels, labels = load_digits(return_X_y=True)
images = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
pick = torch.randint(len(images), (32000,))
dataset = TensorDataset(images[pick] + torch.randn(32000, 64), torch.tensor(labels)[pick])
loader = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
data_iter = iter(loader)

model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
ema = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
ema.load_state_dict(model.state_dict())
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5)
for step in range(800):
    try:
        x, y = next(data_iter)
    except StopIteration:
        data_iter = iter(loader)
        x, y = next(data_iter)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for p, q in zip(ema.parameters(), model.parameters()):
            p.mul_(0.99).add_(q, alpha=0.01)
    if step % 100 == 0:
        print(step, round(loss.item(), 4))
torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "model.pt")
