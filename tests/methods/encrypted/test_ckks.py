"""The polynomial baseline: its affine stretches exactly, its encryption where TenSEAL is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from layerscope.errors import MissingExtraError
from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.backends import ckks
from layerscope.methods.encrypted.trace import trace

installed = importlib.util.find_spec("tenseal") is not None


def squares() -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), she.Square(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        )
        x = torch.rand(16, 1, 6, 6)
        net(x)
    return net.eval(), x


def test_affine_stretches_and_squares_are_the_network():
    net, x = squares()
    parts = ckks.stretches(trace(net, (1, 6, 6)))
    assert [tuple(p.matrix.shape) for p in parts] == [(36, 32), (32, 3)]
    y = x.flatten(1).double() @ parts[0].matrix + parts[0].bias
    y = (y * y) @ parts[1].matrix + parts[1].bias
    assert torch.allclose(y, net.double()(x.double()), atol=1e-10)


def test_what_is_no_polynomial_is_refused():
    with pytest.raises(she.UnsupportedModuleError, match="no polynomial"):
        ckks.stretches(trace(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()).eval(), (1, 6, 6)))
    with pytest.raises(she.UnsupportedModuleError, match="multiplies ciphertexts"):
        she.quantize(squares()[0], squares()[1])


@pytest.mark.skipif(installed, reason="TenSEAL is installed")
def test_without_tenseal_the_error_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"layerscope\[encrypted\]"):
        she.CkksNet(squares()[0], (1, 6, 6))


@pytest.mark.skipif(not installed, reason="tenseal is not installed: pip install 'layerscope[encrypted]'")
@pytest.mark.filterwarnings("ignore")
def test_encrypted_squares_come_close():
    net, x = squares()
    baseline = she.CkksNet(net, (1, 6, 6))
    with pytest.raises(she.InputError, match="keygen"):
        baseline.encrypt(x[0])
    baseline.keygen()
    answer = baseline.decrypt(baseline.run(baseline.public_context(), baseline.encrypt(x[0])))
    assert torch.allclose(answer, net(x[:1])[0], atol=1e-3)
    with pytest.raises(she.InputError, match="finite sample"):
        baseline.encrypt(x[:1])
    deep = nn.Sequential(*[m for _ in range(30) for m in (nn.Conv2d(1, 1, 1), she.Square())]).eval()
    with pytest.raises(she.UnsupportedModuleError, match="modulus"):
        she.CkksNet(deep, (1, 6, 6))
