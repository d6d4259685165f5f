"""Readings of one's own, at the call sites that ``profile`` knows, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope import probe
from layerscope.errors import ProbeError


class Reused(nn.Module):
    """One norm called twice, one in a block, an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.tail = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.norm(x)))
        return self.head(self.tail(x).mean((2, 3)))


def samples() -> torch.Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_readings_agree_with_the_profile_site_by_site():
    """In training mode both see the same tensors: means and second moments by two routes."""
    torch.manual_seed(0)
    net, x = Reused().train(), samples()
    seen = probe.profile(net, (x, torch.zeros(8, dtype=torch.long)), level="deep")
    with probe.tap(net, lambda z: (float(z.double().mean()), float(z.double().square().mean()))) as found:
        net(x)
    known = {r.name: r for r in seen.records if r.role != "block"}
    assert set(known) == set(found)
    for name, ((mean, ms),) in found.items():
        assert known[name].mean == pytest.approx(mean, abs=1e-6)
        assert known[name].ms == pytest.approx(ms, rel=1e-5)


def test_calls_are_named_and_kept_in_order():
    net = Reused().eval()
    with probe.tap(net, lambda z: tuple(z.shape), roles=("norm",)) as found:
        net(samples())
        net(samples()[:2])
    assert list(found) == ["norm", "norm#2", "tail.1"]
    assert found["norm#2"] == [(8, 3, 6, 6), (2, 3, 6, 6)]


def test_inputs_and_patterns():
    net = Reused().eval()
    kept = []
    handle = net.head.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with probe.tap(net, lambda z: z.clone(), select=["head"], inputs=True) as found, torch.no_grad():
        net(samples())
    handle.remove()
    assert torch.equal(found["head"][0], kept[0])
    with pytest.raises(ProbeError, match="did you mean"), probe.tap(net, float, select=["heat"]):
        pass


def test_hooks_are_gone_also_after_an_error_and_the_reading_is_detached():
    net = Reused()
    with pytest.raises(RuntimeError), probe.tap(net, lambda z: z.requires_grad) as found:
        net(samples()[:, :2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with probe.tap(net, lambda z: z.requires_grad) as found:
        net(samples())
    assert not any(flag for flags in found.values() for flag in flags)
    with pytest.raises(ProbeError, match=r"torch\.nn\.Module"), probe.tap("net", float):  # type: ignore[arg-type]
        pass
