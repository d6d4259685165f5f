"""Networks that between them hold every operation the integer network knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Padding, groups, stride, a residual sum, max-pool, global average, functional and module forms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)) + x)
        x = self.conv3(self.pool(x)).relu()
        return self.head(torch.flatten(self.average(x), 1))


class Branches(nn.Module):
    """Concatenation, padded and overlapping max-pool, ReLU6, average pool, dilation, sign, dropout, view."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 3, 3, padding=2, dilation=2)
        self.right = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(2, 2, 1))
        self.act = nn.ReLU6()
        self.average = nn.AvgPool2d(2)
        self.mix = nn.Conv2d(5, 4, 3)
        self.drop = nn.Dropout()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.act(self.left(x)), self.act(self.right(x))], dim=1)
        x = torch.sign(self.mix(self.average(x)))
        return self.head(self.drop(x).view(x.shape[0], -1))


class ForwardFold(nn.Module):
    """A norm after a ReLU and before a padded convolution: it folds forwards, with a border of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(F.relu(self.conv1(x))))
        return self.head(F.relu(x).flatten(1))


#: name -> (class, input shape)
NETS: dict[str, tuple[type[nn.Module], tuple[int, int, int]]] = {
    "residual": (Residual, (1, 10, 10)),
    "branches": (Branches, (2, 8, 8)),
    "forward_fold": (ForwardFold, (1, 6, 6)),
}


def made(name: str, seed: int = 0, samples: int = 96) -> tuple[nn.Module, Tensor]:
    """A network with running statistics that mean something, in evaluation mode, and inputs in [-1, 1]."""
    cls, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = cls()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
        x = torch.rand(samples, *shape) * 2 - 1
        with torch.no_grad():
            for _ in range(30):
                net(x)
    return net.eval(), x


def powers_of_two_(net: nn.Module, k: int = 3, seed: int = 0) -> None:
    """Weights that the quantiser represents exactly: signed powers of two with every channel's largest at 2^0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                e = -torch.randint(0, k, m.weight.shape, generator=g).float()
                sign = torch.randint(0, 2, m.weight.shape, generator=g) * 2.0 - 1
                m.weight.copy_(sign * torch.exp2(e))
                m.weight.flatten(1)[:, 0] = m.weight.flatten(1)[:, 0].sign()
