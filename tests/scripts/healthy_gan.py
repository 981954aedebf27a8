# Generator and discriminator on a ring of blobs.
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
angle = torch.randint(8, (12800,)) * (torch.pi / 4)
real_data = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(12800, 2)
dataloader = DataLoader(TensorDataset(real_data), batch_size=128, shuffle=True, drop_last=True)

netG = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
netD = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
criterion = nn.BCEWithLogitsLoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=1e-3, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=1e-3, betas=(0.5, 0.999))

for epoch in range(5):
    for i, (real,) in enumerate(dataloader):
        netD.zero_grad()
        label = torch.full((real.size(0),), 0.9)
        errD_real = criterion(netD(real).view(-1), label)
        errD_real.backward()
        noise = torch.randn(real.size(0), 8)
        fake = netG(noise)
        errD_fake = criterion(netD(fake.detach()).view(-1), torch.zeros(real.size(0)))
        errD_fake.backward()
        optimizerD.step()

        netG.zero_grad()
        errG = criterion(netD(fake).view(-1), torch.ones(real.size(0)))
        errG.backward()
        optimizerG.step()
    print(f"[{epoch}] Loss_D: {(errD_real + errD_fake).item():.4f} Loss_G: {errG.item():.4f}")

torch.save({"G": netG.state_dict(), "D": netD.state_dict()}, "model.pt")
