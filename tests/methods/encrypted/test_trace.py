"""Reading networks: unusual but exact layers are held, everything else is named; nothing is misread in silence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.backends.circuit import CircuitNet
from layerscope.methods.encrypted.trace import trace


class Fused(nn.BatchNorm2d):
    """A norm that holds its activation, as several libraries write it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Standardised(nn.Conv2d):
    """A convolution with standardised weights and the borders of other frameworks."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, self.bias, self.stride)


class Scaled(nn.Module):
    """Normalises its input, scales by a parameter, shares a module, adds what it stepped over."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).view(1, 2, 1, 1))
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.gamma = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.25
        x = F.relu(self.conv(x) * self.gamma)
        if x.shape[-1] > 4:  # depends on the shape alone
            x = F.relu(self.conv(x) + 0.25)
        return self.head(x).mean((2, 3))


class Sliced(nn.Module):
    """Chunks, slices, crops, clamps, views."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(2, 4, 2, padding="same")
        self.last = nn.Linear(4 * 3 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.cat([self.left(x), self.right(x)], 1).clamp(min=0).chunk(2, 1)
        c, d = torch.split(b, [1, 3], dim=1)
        x = torch.cat([a[:, 1:3], c, d[:, :1]], 1)
        return self.last(F.max_pool2d(F.pad(x, (-1, -1, 0, -2)), (2, 1)).reshape(x.shape[0], -1))


def unusual() -> dict[str, tuple[nn.Module, tuple[int, int, int]]]:
    def conv(*args, **kwargs):
        return nn.Conv2d(*args, **kwargs)

    return {
        "fused norm": (nn.Sequential(conv(1, 3, 3), Fused(3), nn.Flatten(), nn.Linear(48, 2)), (1, 6, 6)),
        "standardised": (nn.Sequential(Standardised(2, 3, 4, stride=2), nn.ReLU(), conv(3, 2, 2)), (2, 7, 7)),
        "scaled": (Scaled(), (2, 6, 6)),
        "sliced": (Sliced(), (2, 8, 6)),
        "depthwise": (nn.Sequential(conv(4, 8, 3, groups=4, padding=1), nn.ReLU6(), conv(8, 2, 1)), (4, 5, 5)),
        "dilated, rectangular": (
            nn.Sequential(conv(1, 2, (1, 3), dilation=(1, 2), padding=(0, 2)), nn.ReLU(), conv(2, 2, (5, 1))), (1, 5, 6)
        ),
        "zero pad": (
            nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), conv(1, 2, 3), nn.ReLU(), conv(2, 1, 1)), (1, 4, 4)
        ),
        "stride above kernel": (
            nn.Sequential(conv(1, 2, 1, stride=3), nn.ReLU(), conv(2, 2, 2, stride=3)), (1, 7, 7)
        ),
        "overlapping pools": (
            nn.Sequential(conv(1, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1), conv(2, 2, 2)),
            (1, 7, 7),
        ),
        "single channel": (nn.Sequential(conv(1, 1, 1), nn.ReLU(), conv(1, 1, 1)), (1, 1, 1)),
        "weight norm": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(conv(1, 2, 3)), nn.ReLU(), conv(2, 1, 1)), (1, 4, 4)
        ),
    }  # fmt: skip


def ready(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, shape = unusual()[name]
        x = torch.rand(48, *shape)
        with torch.no_grad():
            for _ in range(20):
                net(x)
    return net.eval(), x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", unusual())
def test_unusual_networks_are_read_exactly_and_quantised_bit_for_bit(name):
    net, x = ready(name)
    graph = trace(net, x.shape[1:])
    assert not [s.kind for s in graph.steps if s.op == "opaque"]
    expected = net.double()(x.double()).detach()
    assert torch.allclose(graph.run(x.double())[-1].reshape(expected.shape), expected, atol=1e-9)
    q = she.quantize(net.float(), x, bits=3, act_bits=3)
    codes = torch.randint(0, 8, (5, *x.shape[1:]), generator=torch.Generator().manual_seed(1))
    codes[0], codes[1] = 0, 7
    plain = q.integers(codes, debug=True)
    assert (CircuitNet(q.graph).run(codes.numpy()).reshape(5, -1) == plain.reshape(5, -1).numpy()).all()
    report = she.cost(q, accumulators=("csa",))
    assert not report.unpriced
    assert report.gates("csa") == pytest.approx(CircuitNet(q.graph).audit().gates, rel=0.25, abs=20)


@pytest.mark.parametrize(
    ("layer", "kind", "words"),
    [
        (nn.SiLU(), "SiLU", r"nn\.ReLU"),
        (nn.LeakyReLU(), "LeakyReLU", r"nn\.ReLU"),
        (nn.InstanceNorm2d(2), "InstanceNorm2d", "batch norm"),
        (nn.Upsample(scale_factor=2), "Upsample", "upsampling"),
        (nn.ConvTranspose2d(2, 2, 2), "ConvTranspose2d", "transposed"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "Conv2d", "zeros"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool2d", "ceil_mode"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "AvgPool2d", "count_include_pad"),
        (nn.AdaptiveAvgPool2d(3), "AdaptiveAvgPool2d", "divides"),
        (nn.PixelShuffle(1), "PixelShuffle", "no exact integer form"),
        (nn.Softmax(1), "Softmax", "after decryption"),
    ],
)
def test_what_cannot_be_held_is_named_with_its_path_and_priced_around(layer, kind, words):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), layer, nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.raises(she.UnsupportedModuleError, match=words) as caught:
        she.quantize(net, torch.rand(8, 1, 10, 10))
    assert caught.value.path == "1"
    report = she.cost(net, (1, 10, 10))
    assert [(layer.name, layer.kind) for layer in report.unpriced] == [("1", kind)]
    assert report.bootstraps > 0


def test_a_gate_of_two_activations_and_tokens_are_named():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            x = self.conv(x)
            return (x * x.mean((2, 3), keepdim=True)).flatten(2).transpose(1, 2)

    kinds = [s.kind for s in trace(Gate().eval(), (1, 6, 6)).steps if s.op == "opaque"]
    assert kinds == ["mul", "flatten", "transpose"]
    with pytest.raises(she.UnsupportedModuleError, match="two activations"):
        she.quantize(Gate().eval(), torch.rand(4, 1, 6, 6))


def test_code_that_reads_values_is_refused_and_code_that_reads_shapes_is_not():
    class Reads(nn.Module):
        def forward(self, x):
            return x * 2 if x.amax().item() > 0 else x

    with pytest.raises(she.UnsupportedModuleError, match=r"cannot be traced.*depends on the data"):
        trace(Reads().eval(), (1, 4, 4))


def test_what_is_computed_behind_a_view_is_caught():
    class Behind(nn.Module):
        def forward(self, x):
            y = x * 1.0
            y.view(y.shape).mul_(0.5)
            return y + x

    net = nn.Sequential(nn.Conv2d(1, 2, 3), Behind()).eval()
    with pytest.raises(she.UnsupportedModuleError, match="something else"):
        she.quantize(net, torch.rand(8, 1, 6, 6))


def test_shapes_that_do_not_fit_and_missing_inputs_are_one_sentence():
    net = nn.Sequential(nn.Conv2d(3, 2, 3)).eval()
    for shape in ((1, 8, 8), (3, 2, 2), (3, 0, 8), ()):
        with pytest.raises(she.UnsupportedModuleError, match="shape"):
            she.cost(net, shape)

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(she.UnsupportedModuleError, match="one input"):
        trace(Two().eval(), (1, 4, 4))


def test_global_max_pool_is_a_max_pool_and_reduced_precision_is_read():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(30, 1, 8, 8)
    graph = trace(net, (1, 8, 8))
    assert [s.op for s in graph.steps] == ["input", "conv", "relu", "maxpool", "conv"]
    assert torch.allclose(graph.run(x.double())[-1].flatten(1), net(x).double(), atol=1e-5)
    assert trace(net.bfloat16(), (1, 8, 8)).steps[3].op == "maxpool"


@pytest.mark.parametrize(("place", "what"), [("weight", "weight"), ("bias", "bias")])
def test_numbers_that_are_none_are_named_with_their_layer(place, what):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        getattr(net[2], place).view(-1)[1] = float("inf")
    with pytest.raises(she.QuantizationError, match=f"2: its {what} holds NaN or infinity"):
        she.cost(net, (1, 8, 8))


def test_a_relu_on_inputs_below_zero_says_what_to_do():
    net = nn.ReLU().eval()
    with pytest.raises(she.UnsupportedModuleError, match=r"ReLU: sees the network's input .* input_range=\(0"):
        she.quantize(net, torch.rand(8, 1, 3, 3) - 0.5)
    q = she.quantize(net, torch.rand(8, 1, 3, 3), input_range=(0.0, 1.0), act_bits=4)
    assert torch.equal(q(torch.eye(3)[None, None]).flatten(), torch.eye(3).flatten())
