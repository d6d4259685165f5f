from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerscope.methods.focus import FocusedConv2d
from layerscope.methods.focus.errors import BuildError, FocusError, FocusTypeError
from layerscope.methods.focus.levels import Level
from layerscope.methods.focus.read_modules import conv_of
from methods.focus.focus_nets import make_mask

BACKENDS = ("avx512", "avx2", "plain", "torch")


def focused(conv: nn.Conv2d, backend: str, **options):
    try:
        return FocusedConv2d.from_conv(conv, backend=backend, **options)
    except BuildError as error:
        pytest.skip(str(error))


# (kernel, stride, padding, dilation, groups, bias, channels in, out)
LAYERS = [
    (1, 1, 0, 1, 1, True, 8, 16),
    (3, 1, 1, 1, 1, True, 5, 37),
    (3, 2, 1, 1, 1, False, 16, 33),
    (5, 3, 2, 1, 1, True, 7, 20),
    (7, 2, 3, 1, 1, True, 3, 64),
    (3, 1, 2, 2, 1, True, 6, 40),
    (3, 1, 1, 1, 2, True, 8, 12),
    (7, 1, 3, 1, 20, True, 20, 20),
    (5, 2, 2, 1, 24, True, 24, 24),
    (3, 1, 1, 1, 33, False, 33, 33),
    ((1, 3), 1, (0, 1), 1, 1, True, 4, 9),
    (2, 2, 0, 1, 1, True, 6, 31),
    (3, 1, 0, 1, 1, True, 4, 8),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("kind", ["blob", "border"])
def test_active_outputs_equal_the_masked_dense_layer(layer, backend, kind):
    k, s, p, d, g, bias, i, o = layer
    torch.manual_seed(1)
    conv = nn.Conv2d(i, o, k, s, p, d, g, bias)
    x, mask = torch.randn(2, i, 13, 10), make_mask(kind, 2, 13, 10)
    fill_in, fill_out = torch.randn(i), torch.randn(o)
    y = focused(conv, backend, fill_in=fill_in, fill_out=fill_out)(x, mask)
    with torch.no_grad():
        want = conv(torch.where(mask[:, None], x, fill_in[:, None, None]))
        plain = conv(x)
    out = Level(mask).through(conv_of(conv).geometry).mask
    torch.testing.assert_close(y, torch.where(out[:, None], want, fill_out[:, None, None]), atol=1e-5, rtol=1e-5)
    # where a window meets no inactive position, that is the ordinary layer
    touched = (
        F.conv2d((~mask)[:, None].float(), torch.ones(1, 1, *conv.kernel_size), None, s, conv.padding, d)[:, 0] > 0
    )
    clean = (out & ~touched)[:, None].expand_as(y)
    torch.testing.assert_close(y[clean], plain[clean], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_reads_zeros_and_inactive_positions_read_the_fill(backend):
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    y = focused(conv, backend, fill_in=torch.ones(1))(torch.full((1, 1, 4, 4), 5.0), mask)
    assert y[0, 0, 0, 0].item() == 5.0 + 3.0  # itself, three fills inside, five zeros outside


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_and_neighbours_in_the_batch_do_not_matter(backend):
    torch.manual_seed(0)
    conv, x, mask = nn.Conv2d(6, 18, 3, padding=1), torch.randn(3, 6, 9, 11), make_mask("independent", 3, 9, 11)
    layer = focused(conv, backend)
    y = layer(x, mask)
    strided = torch.randn(3, 12, 9, 22)[:, ::2, :, ::2].copy_(x)
    for same in (x.contiguous(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(layer(same, mask), y, atol=1e-6, rtol=0)
    for i in range(3):
        torch.testing.assert_close(layer(x[i : i + 1], mask[i]), y[i : i + 1], atol=1e-6, rtol=0)


def test_smooth_activations_of_the_kernels_are_torchs():
    from layerscope.methods.focus.backends import make_backend
    from layerscope.methods.focus.ops import Affine
    from layerscope.methods.focus.plan import ACTIVATIONS

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 88.0, -88.0, 1e30, -1e30])])[:, None]
    level = Level(torch.ones(1, 1, len(x), dtype=torch.bool))
    for name in ("avx512", "avx2", "plain"):
        try:
            backend = make_backend(name)
        except BuildError:
            continue
        for kind, function in ACTIVATIONS.items():
            out = torch.empty_like(x)
            affine = Affine(torch.ones(1), torch.zeros(1)).as_conv()
            backend.conv(affine, kind, None)(x, level, None, out)
            torch.testing.assert_close(out, function(x), atol=2e-6, rtol=2e-6, msg=f"{name} {kind}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_comes_through(backend):
    layer = focused(nn.Conv2d(2, 3, 1), backend)
    y = layer(torch.tensor([[[[float("nan"), 1.0]], [[0.0, 1.0]]]]), torch.ones(1, 1, 2, dtype=torch.bool))
    assert y[..., 0].isnan().all()
    assert y[..., 1].isfinite().all()


def test_bad_layers_and_masks_are_refused():
    with pytest.raises(FocusTypeError, match=r"nn.Conv2d"):
        FocusedConv2d(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(FocusError, match="padding_mode 'reflect'"):
        FocusedConv2d(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    layer = FocusedConv2d(nn.Conv2d(2, 2, 3, padding="same"))
    x = torch.zeros(1, 2, 4, 4)
    assert layer(x, torch.ones(4, 4, dtype=torch.bool)).shape == (1, 2, 4, 4)
    with pytest.raises(FocusError, match="aoi: expected"):
        layer(x, torch.ones(1, 4, 5, dtype=torch.bool))
    with pytest.raises(FocusTypeError, match="dtype bool"):
        layer(x, torch.ones(1, 4, 4))
    with pytest.raises(FocusTypeError, match="float32"):
        layer(x.double(), torch.ones(1, 4, 4, dtype=torch.bool))
