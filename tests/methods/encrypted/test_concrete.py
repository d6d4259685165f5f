"""Real encryption, where the extra is installed: the micro-layer bit for bit, and what the engine would let pass."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("concrete") is None,
        reason="concrete-python is not installed: pip install 'layerscope[encrypted]'",
    ),
    # the engine announces its own deprecated imports and leaves temporary folders to the collector
    pytest.mark.filterwarnings("ignore"),
]


def micro() -> tuple[nn.Module, torch.Tensor]:
    """6 x 6 input of 4 bits; 3 x 3 convolution to 2 channels with weights 0, +-1, +-2, +-4; ReLU; 2 x 2 max-pool."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with torch.no_grad():
        choice = torch.tensor([0.0, 1, -1, 2, -2, 4, -4])
        net[0].weight.copy_(choice[torch.randint(0, 7, (2, 1, 3, 3), generator=g)])
        net[0].weight[:, 0, 0, 0] = 4
    x = torch.randint(0, 16, (64, 1, 6, 6), generator=g).float()
    x.view(-1)[:2] = torch.tensor([0.0, 15.0])
    return net.eval(), x


def test_micro_layer_is_bit_exact_under_encryption():
    net, x = micro()
    qnet = she.quantize(net, x, bits=3, act_bits=4, lookup_bits=5)
    compiled = she.compile(qnet, "concrete")
    client, server = compiled.client(), compiled.server()
    client.keygen()
    keys = client.evaluation_keys()
    batch = torch.cat([torch.zeros(1, 1, 6, 6), torch.full((1, 1, 6, 6), 15.0), x[:1]])
    answer = client.decrypt(server.run(client.encrypt(batch, canary=True), keys), raw=True)
    assert torch.equal(answer, qnet.integers(qnet.encode(batch)).flatten(1))
    assert compiled.facts.security_bits == 128
    assert compiled.facts.failure <= 2**-17

    stranger = compiled.client()
    stranger.keygen()
    with pytest.raises(she.KeyMismatchError):
        server.run(client.encrypt(x[:1]), stranger.evaluation_keys())
    with pytest.raises(she.KeyMismatchError):
        stranger.decrypt(server.run(client.encrypt(x[:1]), keys))


def test_ranges_are_ours_and_not_those_of_the_samples():
    """A network whose extremes no sample shows: (7, 0, 7) must come out right, not wrapped."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[4.0, -4.0, 4.0]]))
        net[3].weight.fill_(1.0)
    calib = torch.tensor([[0.0, 0, 0], [7, 7, 0], [0, 7, 7], [1, 1, 1]]).view(4, 3, 1, 1)
    qnet = she.quantize(net, calib, bits=2, act_bits=6, input_bits=3)
    compiled = she.compile(qnet, "concrete")
    client, server = compiled.client(), compiled.server()
    client.keygen()
    x = torch.tensor([7.0, 0, 7]).view(1, 3, 1, 1)
    answer = client.decrypt(server.run(client.encrypt(x), client.evaluation_keys()), raw=True)
    assert torch.equal(answer, qnet.integers(qnet.encode(x)))
    assert int(answer) > 0


def test_keys_and_files_survive_the_disk(tmp_path):
    """The client that decrypts is not the process's first: everything it knows comes from files."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[2.0, -1.0, 4.0]]))
        net[3].weight.fill_(1.0)
    calib = torch.randint(0, 8, (64, 3, 1, 1), generator=torch.Generator().manual_seed(0)).float()
    qnet = she.quantize(net, calib, bits=2, act_bits=5, input_bits=3)
    compiled = she.compile(qnet, "concrete")
    compiled.client().save(tmp_path / "net.client")
    she.Client.load(tmp_path / "net.client").keygen(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0

    client = she.Client.load(tmp_path / "net.client")
    client.load_keys(tmp_path / "key")
    x = torch.tensor([3.0, 1, 5]).view(1, 3, 1, 1)
    answer = compiled.server().run(client.encrypt(x), (tmp_path / "key.evaluation").read_bytes())
    assert torch.equal(client.decrypt(answer, raw=True), qnet.integers(qnet.encode(x)))


@pytest.mark.slow
def test_random_networks_are_bit_exact_under_encryption():
    """Residual sum, padding, groups, concatenation, per-channel shifts, on extremal and random inputs."""
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, groups=2)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self.conv1(x))
            y = torch.relu(self.conv2(x) + x)
            z = torch.nn.functional.max_pool2d(torch.cat([y, x], 1), 3, 2, 1)
            return self.head(torch.nn.functional.adaptive_avg_pool2d(z, 1).flatten(1))

    net, x = Small().eval(), torch.rand(64, 1, 4, 4) * 2 - 1
    qnet = she.quantize(net, x, bits=3, act_bits=2, lookup_bits=5)
    assert "passed: 5 inputs" in she.compile(qnet, "concrete").selftest(3)
    assert np.isfinite(qnet(x).numpy()).all()
