# Functional style: parameters in a dict, functional_call, bfloat16 autocast.
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
pixels, labels = load_digits(return_X_y=True)
images = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
pick = torch.randint(len(images), (38400,))
data = TensorDataset(images[pick] + torch.randn(38400, 64), torch.tensor(labels)[pick])

net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
params = {name: p for name, p in net.named_parameters()}
opt = torch.optim.SGD(params.values(), lr=0.02)


def loss_of(params, x, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = functional_call(net, params, (x,))
    penalty = sum(p.pow(2).sum() for p in params.values())
    return F.cross_entropy(logits.float(), y) + 1e-5 * penalty


for x, y in DataLoader(data, batch_size=64, shuffle=True):
    opt.zero_grad()
    loss = loss_of(params, x, y)
    loss.backward()
    opt.step()

print(loss.item())
torch.save(params, "model.pt")
