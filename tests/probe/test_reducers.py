"""The reductions of single tensors against float64 brute force, in every memory layout and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from layerscope.probe.reducers import square_norm

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3),
    "every other": lambda t: t[:, ::2, :, ::2],
    "expanded": lambda t: t[:, :, :1, :1].expand(-1, -1, 5, 5),
    "scalar": lambda t: t[0, 0, 0, 0],
    "empty": lambda t: t[:0],
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_square_norm_in_every_layout_and_dtype(layout: str, dtype: torch.dtype) -> None:
    t = LAYOUTS[layout](torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype))
    expected = math.fsum(v * v for v in t.double().flatten().tolist())
    assert float(square_norm(t)) == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert square_norm(t).dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e22, 1e35])
def test_square_norm_beyond_the_range_of_float32_squares(size: float) -> None:
    """A gradient of 1e-22 is a float32, its square is not: read as zero it would be called vanished."""
    t = torch.randn(300, generator=torch.Generator().manual_seed(0)) * size
    assert math.sqrt(float(square_norm(t))) == pytest.approx(float(t.double().norm()), rel=1e-6)


def test_square_norm_of_complex_zero_and_nonfinite() -> None:
    z = torch.complex(torch.randn(7), torch.randn(7))
    assert float(square_norm(z)) == pytest.approx(float(z.abs().double().square().sum()), rel=1e-5)
    assert float(square_norm(torch.zeros(5))) == 0
    assert math.isnan(float(square_norm(torch.tensor([1.0, math.nan]))))
    assert float(square_norm(torch.tensor([1.0, math.inf]))) == math.inf


def test_square_norm_of_many_entries_loses_nothing() -> None:
    t = torch.rand(2_000_000, generator=torch.Generator().manual_seed(0)) + 1
    assert float(square_norm(t)) == pytest.approx(float(t.double().square().sum()), rel=1e-5)
