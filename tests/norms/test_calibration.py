from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from layerscope import norms
from layerscope.errors import LayerscopeError

SPECS = ["batch", "mixture:k=3", "mixture:k=2,posterior=channel", "mode:k=2", "ghost:size=8", "variance"]


def batches(n: int = 4, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 6, 6, generator=g, dtype=torch.float64) + 0.1 * i for i in range(n)]


def network(spec: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    width = 3
    for channels in (5, 4):
        layers += [nn.Conv2d(width, channels, 3), norms.build(spec, channels), nn.ReLU(), nn.Dropout(0.5)]
        width = channels
    return nn.Sequential(*layers).double()


def buffers(net: nn.Module) -> list[Tensor]:
    return [b.clone() for b in net.buffers()]


@pytest.mark.parametrize("spec", SPECS)
def test_recalibration_is_idempotent_and_independent_of_the_order(spec: str) -> None:
    net = network(spec)
    for x in batches(3, 9):
        net(x)
    reversed_ = copy.deepcopy(net)
    assert norms.recalibrate(net, batches()) == 4
    once = buffers(net)
    norms.recalibrate(net, batches())
    norms.recalibrate(reversed_, batches()[::-1])
    for a, b, c in zip(once, buffers(net), buffers(reversed_), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


def test_statistics_of_the_first_layer_are_those_of_all_the_data() -> None:
    net = network("mixture:k=1")
    norms.recalibrate(net, batches())
    seen = torch.cat([net[0](x) for x in batches()]).detach().transpose(0, 1).reshape(5, -1)
    torch.testing.assert_close(net[1].running_mean[0], seen.mean(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net[1].running_var[0], seen.var(1, correction=0), rtol=1e-10, atol=1e-10)
    plain = network("batch")
    norms.recalibrate(plain, batches())
    torch.testing.assert_close(plain[1].running_mean, seen.mean(1), rtol=1e-10, atol=1e-10)


def test_batch_norms_of_torch_are_served_too() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3)).double().eval()
    net[0].momentum = 0.25
    norms.recalibrate(net, ((x, None) for x in batches()), max_batches=2)
    torch.testing.assert_close(net[0].running_mean, torch.cat(batches()[:2]).mean((0, 2, 3)))
    assert net[0].momentum == 0.25
    assert net[0].num_batches_tracked.item() == 2


def test_modes_parameters_and_momenta_come_back_also_after_an_exception() -> None:
    net = network("batch").train()
    net[3].eval()

    def broken() -> object:
        yield batches()[0]
        raise RuntimeError("the disk is gone")

    weights = [p.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="disk"):
        norms.recalibrate(net, broken())
    assert [m.training for m in net] == [True, True, True, False, True, True, True, True]
    assert net[1].momentum == net[5].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(LayerscopeError, match="nothing to recalibrate"):
        norms.recalibrate(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), batches())
    net = network("batch")
    net(batches()[0])
    before = buffers(net)
    with pytest.raises(LayerscopeError, match="no batch"):
        norms.recalibrate(net, [])
    assert all(torch.equal(a, b) for a, b in zip(before, buffers(net), strict=True))


def test_training_and_evaluation_agree_after_recalibration_on_one_batch() -> None:
    net = network("mixture:k=3").train()
    x = batches()[0]
    for _ in range(5):
        net(x)
    norms.recalibrate(net, [x])
    net.eval()
    with torch.no_grad():
        evaluated = net(x)
        for m in net:
            m.training = isinstance(m, norms.MixtureNorm)
        trained = net(x)
    torch.testing.assert_close(evaluated, trained, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kind", ["tensors", "pairs", "lists", "loader", "generator", "one tensor", "dicts", "labelled dicts"]
)
def test_every_kind_of_batches_gives_the_same_statistics(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network("mixture:k=2")

        def forward(self, image: Tensor) -> Tensor:
            return self.body(image)

    x = torch.cat(batches())
    y = torch.arange(len(x))
    given = {
        "tensors": x.split(16),
        "pairs": list(zip(x.split(16), y.split(16), strict=True)),
        "lists": [[part] for part in x.split(16)],
        "loader": DataLoader(TensorDataset(x, y), batch_size=16),
        "generator": (part for part in x.split(16)),
        "one tensor": x,
        "dicts": [{"image": part} for part in x.split(16)],
        "labelled dicts": [{"image": part, "label": y[:16]} for part in x.split(16)],
    }[kind]
    net = Named()
    net(batches(1, 9)[0])  # dropout draws: the twin is a copy of what this left
    twin = copy.deepcopy(net)
    norms.recalibrate(twin, [x] if kind == "one tensor" else x.split(16))
    assert norms.recalibrate(net, given) == (1 if kind == "one tensor" else 4)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
