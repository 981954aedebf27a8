# Two sources of data whose shares change in stages.
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, DataLoader, Sampler, TensorDataset

torch.set_num_threads(1)
STAGES, STEPS, BATCH, SIZE = 24, 100, 128, 20000


def source(noise, seed):
    pixels, labels = load_digits(return_X_y=True)
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(labels), (SIZE,), generator=g)
    x = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
    return TensorDataset(x[pick] + noise * torch.randn(SIZE, 64, generator=g), torch.tensor(labels)[pick])


class Staged(Sampler):
    def __iter__(self):
        g = torch.Generator().manual_seed(0)
        for stage in range(STAGES):
            noisy = torch.rand(STEPS * BATCH, generator=g) < (0.9 if stage % 2 else 0.1)
            yield from (torch.randint(SIZE, (STEPS * BATCH,), generator=g) + SIZE * noisy).tolist()

    def __len__(self):
        return STAGES * STEPS * BATCH


torch.manual_seed(0)
loader = DataLoader(ConcatDataset([source(0.5, 0), source(1.5, 1)]), batch_size=BATCH, sampler=Staged())
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
lossfn = nn.CrossEntropyLoss()
step = 0
for xb, yb in loader:
    loss = lossfn(model(xb), yb)
    opt.zero_grad()
    loss.backward()
    opt.step()
    step += 1
    if step % 400 == 0:
        print(step, loss.item())
torch.save(model.state_dict(), "model.pt")
