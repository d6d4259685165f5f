"""Which axis is what, and views that copy only when they must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerscope import norms
from layerscope.probe.layouts import AxisMemory, samples_first, view


def test_contiguous_and_channels_last_maps_are_looked_at_in_place() -> None:
    x = torch.randn(2, 3, 4, 5)
    for t, channels_first in ((x, True), (x.contiguous(memory_format=torch.channels_last), False)):
        seen = view(t, channels_last=False)
        assert (seen.layout, seen.positions, seen.channels_first) == ("conv", 20, channels_first)
        assert seen.data.data_ptr() == t.data_ptr()
        values = seen.data if channels_first else seen.data.transpose(1, 2)
        assert torch.equal(values, x.flatten(2))


def test_other_strides_are_copied() -> None:
    x = torch.randn(4, 3, 2, 5).transpose(0, 2)
    assert torch.equal(view(x, channels_last=False).data, x.flatten(2))


def test_tokens_vectors_and_half_precision() -> None:
    assert view(torch.randn(2, 7, 5), channels_last=True)[2:] == (False, 7)
    assert view(torch.randn(2, 4, 4, 5), channels_last=True).data.shape == (2, 16, 5)
    assert view(torch.randn(2, 5), channels_last=False).layout == "vector"
    assert view(torch.randn(2, 3, 4).bfloat16(), channels_last=False).data.dtype == torch.float32


def test_an_activation_inherits_the_channel_axis_from_the_layer_before() -> None:
    memory, tokens, maps = AxisMemory(), torch.randn(2, 5, 8), torch.randn(2, 4, 4, 8)
    assert memory.channels_are_last(nn.GELU(), tokens)
    assert not memory.channels_are_last(nn.GELU(), maps)
    assert memory.channels_are_last(nn.Linear(8, 8), maps)
    assert memory.channels_are_last(nn.GELU(), maps)
    assert not memory.channels_are_last(nn.Conv2d(1, 1, 1), maps)
    assert not memory.channels_are_last(nn.GELU(), maps)
    assert not memory.channels_are_last(nn.Conv1d(1, 1, 1), tokens)
    assert not memory.channels_are_last(nn.ReLU(), tokens)
    assert memory.channels_are_last(nn.LayerNorm(8), tokens)


def test_layer_norms_by_their_shape() -> None:
    class LayerNorm2d(nn.LayerNorm):
        """Over axis 1 of a map, as in ConvNeXt implementations."""

    memory = AxisMemory()
    assert memory.channels_are_last(nn.LayerNorm(8), torch.randn(2, 4, 4, 8))
    assert not memory.channels_are_last(nn.LayerNorm((3, 4, 4)), torch.randn(2, 3, 4, 4))
    assert not memory.channels_are_last(LayerNorm2d(6), torch.randn(2, 6, 4, 4))


@pytest.mark.parametrize("spec", ["batch", "layer", "rms", "instance"])
def test_our_norms_take_tokens_with_channels_last(spec: str) -> None:
    norm = norms.build(spec, 8)
    memory = AxisMemory()
    assert memory.channels_are_last(norm, torch.randn(2, 5, 8))
    assert not memory.channels_are_last(norm, torch.randn(2, 8, 4, 4))


def test_sample_axis() -> None:
    def shape(x: Tensor, channels_last: bool) -> tuple[tuple[int, ...], bool] | None:
        found = samples_first(x, 4, channels_last)
        return None if found is None else (tuple(found[0].shape), found[1])

    assert shape(torch.randn(4, 3), False) == ((4, 3), False)
    assert shape(torch.randn(7, 4, 3), True) == ((4, 7, 3), True)  # sequence first
    assert shape(torch.randn(8, 5, 3), True) == ((4, 10, 3), True)  # windows
    assert shape(torch.randn(8, 3, 5, 5), False) == ((4, 50, 3), True)  # two views of every sample
    assert shape(torch.randn(12, 3), False) == ((4, 3, 3), True)  # tokens in one row
    assert shape(torch.randn(3, 3), False) is None
    assert shape(torch.randn(()), False) is None
