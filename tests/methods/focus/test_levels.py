from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.levels import INACTIVE, PADDING, Geometry, Level, TorchTables, gather, scatter


@st.composite
def cases(draw):
    k = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    s = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    p = (draw(st.integers(0, k[0] // 2)), draw(st.integers(0, k[1] // 2)))
    d = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    h, w = draw(st.integers(9, 13)), draw(st.integers(9, 13))
    mask = torch.rand(2, h, w, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))) > 0.6
    return mask, Geometry(k, s, p, d)


def test_the_output_grid_is_torchs():
    x = torch.zeros(1, 1, 11, 8)
    for k, s, p, d, ceil in [
        (3, 2, 1, 1, False),
        (3, 2, 0, 2, False),
        (2, 2, 0, 1, True),
        (3, 2, 1, 1, True),
        (7, 3, 3, 1, True),
    ]:
        out = F.max_pool2d(x, k, s, p, d, ceil_mode=ceil)
        assert Geometry((k, k), (s, s), (p, p), (d, d), ceil).out_size(11, 8) == tuple(out.shape[2:])


@given(cases())
@settings(deadline=None, max_examples=40)
def test_propagation_and_tables_against_a_naive_loop(case):
    mask, g = case
    level = Level(mask, TorchTables())
    out = level.through(g)
    n, height, width = mask.shape
    table = level.table(g)
    row = 0
    for image in range(n):
        for y in range(out.mask.shape[1]):
            for x in range(out.mask.shape[2]):
                ys = [min(max(y * g.stride[0] + g.offset(0) + i, 0), height - 1) for i in range(g.stride[0])]
                xs = [min(max(x * g.stride[1] + g.offset(1) + i, 0), width - 1) for i in range(g.stride[1])]
                active = any(bool(mask[image, a, b]) for a in ys for b in xs)
                assert bool(out.mask[image, y, x]) == active
                if not active:
                    continue
                for t in range(g.taps):
                    a = y * g.stride[0] - g.padding[0] + t // g.kernel[1] * g.dilation[0]
                    b = x * g.stride[1] - g.padding[1] + t % g.kernel[1] * g.dilation[1]
                    inside = 0 <= a < height and 0 <= b < width
                    want = PADDING if not inside else int(level.map[image, a, b])
                    assert int(table[row, t]) == want
                    assert not inside or (want == INACTIVE) == (not bool(mask[image, a, b]))
                row += 1
    assert row == out.n


@given(cases())
@settings(deadline=None, max_examples=25)
def test_compiled_tables_equal_the_torch_ones(case):
    mask, g = case
    ours, theirs = Level(mask, make_backend("plain").tables), Level(mask, TorchTables())
    assert torch.equal(ours.map, theirs.map)
    assert torch.equal(ours.position, theirs.position)
    assert torch.equal(ours.counts, theirs.counts)
    assert torch.equal(ours.table(g), theirs.table(g))


def test_strides_round_up_on_odd_sizes():
    mask = torch.zeros(1, 7, 5, dtype=torch.bool)
    mask[0, 6, 4] = True
    out = Level(mask).through(Geometry((3, 3), (2, 2), (1, 1))).mask
    assert out.shape == (1, 4, 3)
    assert out.nonzero().tolist() == [[0, 3, 2]]


def test_layers_that_lead_to_the_same_grid_share_one_level_object():
    level = Level(torch.rand(1, 8, 8) > 0.5)
    assert level.through(Geometry((3, 3), (2, 2), (1, 1))) is level.through(Geometry((1, 1), (2, 2)))
    assert level.through(Geometry((3, 3), (1, 1), (1, 1))) is level
    assert level.through(Geometry((3, 3), (1, 1), (2, 2), (2, 2))) is level


@pytest.mark.parametrize(
    "g", [Geometry((3, 3), (1, 1), (0, 0)), Geometry((1, 1), (1, 1), (2, 2)), Geometry((3, 3), (2, 2))]
)
def test_a_full_set_stays_full(g):
    assert Level(torch.ones(2, 7, 9, dtype=torch.bool)).through(g).is_full


def test_gather_and_scatter_are_inverse_and_take_any_layout():
    x = torch.randn(2, 5, 4, 6)
    mask = torch.rand(2, 4, 6) > 0.4
    level = Level(mask)
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        dense = scatter(gather(layout, level), level, torch.full((5,), 9.0))
        assert torch.equal(dense, torch.where(mask[:, None], x, torch.tensor(9.0)))


def test_a_mask_in_another_memory_layout_gives_the_same_level():
    mask = torch.rand(3, 5, 7) > 0.5
    turned = mask.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not turned.is_contiguous()
    for tables in (TorchTables(), make_backend("auto").tables):
        assert torch.equal(Level(turned, tables).map, Level(mask, tables).map)
