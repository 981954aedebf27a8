# Mixed precision as in the tutorial, on the CPU.
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.amp import GradScaler, autocast
from torch.utils.data import DataLoader, TensorDataset


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    images = (torch.tensor(pixels, dtype=torch.float32) - 5) / 6
    pick = torch.randint(len(images), (8 * 2400,))
    data = TensorDataset(images[pick] + torch.randn(len(pick), 64), torch.tensor(labels)[pick])
    loader = DataLoader(data, batch_size=8, shuffle=True)

    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    scaler = GradScaler("cpu")
    for inputs, target in loader:
        opt.zero_grad()
        with autocast("cpu", dtype=torch.float16):
            output = net(inputs)
        loss = F.cross_entropy(output.float(), target)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    print("scale at the end:", scaler.get_scale())
    torch.save(net.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
