from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.methods.focus import AoI
from layerscope.methods.focus.aoi import bounding_box, dilate, pool_cells, select
from layerscope.methods.focus.errors import FocusError, FocusTypeError


def test_brightness_thresholds_cell_means_and_border_cells_count_what_they_have():
    features = torch.zeros(1, 2, 5, 5)
    features[0, :, 4, 4] = 3.0
    assert AoI.from_brightness(features, 6.0).mask.nonzero().tolist() == [[0, 4, 4]]
    cells = AoI.from_brightness(features, 6.0, grid=2).mask  # the corner cell holds this one position
    assert cells.nonzero().tolist() == [[0, 4, 4]]
    assert not AoI.from_brightness(features, 6.1, grid=2).mask.any()
    assert AoI.from_brightness(features, float("-inf")).share == 1.0


@given(st.integers(0, 999), st.integers(1, 4), st.integers(3, 9), st.integers(3, 9))
@settings(deadline=None, max_examples=25)
def test_boxes_dilation_and_cells_against_loops(seed, grid, h, w):
    mask = torch.rand(2, h, w, generator=torch.Generator().manual_seed(seed)) > 0.8
    box, grown = bounding_box(mask), dilate(mask, 1)
    values = torch.rand(2, h, w, generator=torch.Generator().manual_seed(seed + 1))
    for n in range(2):
        on = mask[n].nonzero()
        for y in range(h):
            for x in range(w):
                inside = len(on) > 0 and bool((on.amin(0) <= torch.tensor([y, x])).all())
                inside = inside and bool((on.amax(0) >= torch.tensor([y, x])).all())
                assert bool(box[n, y, x]) == inside
                assert bool(grown[n, y, x]) == bool(mask[n, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any())
                a, b = y // grid * grid, x // grid * grid
                cell = values[n, a : a + grid, b : b + grid].mean()
                torch.testing.assert_close(pool_cells(values, grid)[n, y // grid, x // grid], cell)


def test_nan_would_drop_positions_silently_and_is_refused():
    with pytest.raises(FocusError, match="holds NaN"):
        select(torch.tensor([[[float("nan"), 1.0]]]), 0.5)
    with pytest.raises(FocusError, match="threshold: NaN"):
        select(torch.ones(1, 2, 2), float("nan"))
    with pytest.raises(FocusError, match="shape: expected"):
        select(torch.ones(1, 2, 2), 0.0, shape="circle")
    with pytest.raises(FocusError, match="grid"):
        select(torch.ones(1, 2, 2), 0.0, grid=0)


def test_boxes_and_masks_are_checked():
    assert AoI.from_box([(0, 0, 1, 2), (1, 1, 2, 2)], (2, 2)).mask.sum().item() == 3
    for box in ((1, 1, 1, 2), (0, 0, 3, 1), (-1, 0, 1, 1)):
        with pytest.raises(FocusError, match="empty or leaves"):
            AoI.from_box(box, (2, 2))
    with pytest.raises(FocusError, match="integers"):
        AoI.from_box((0.0, 0.0, 1.0, 1.0), (2, 2))  # type: ignore[arg-type]
    with pytest.raises(FocusTypeError, match="dtype bool"):
        AoI.from_mask(torch.ones(1, 2, 2))
    with pytest.raises(FocusError, match="all of one size"):
        AoI.from_mask([torch.ones(2, 2) > 0, torch.ones(3, 2) > 0])
    with pytest.raises(FocusError, match=r"expected shape \[N, H, W\]"):
        AoI.from_mask(torch.ones(1, 1, 2, 2) > 0)


def test_a_finer_area_is_shrunk_by_any_and_a_coarser_one_refused():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 5] = True
    assert AoI(mask).resize(4, 4).mask.nonzero().tolist() == [[0, 1, 2]]
    with pytest.raises(FocusError, match="coarser"):
        AoI(mask).resize(16, 16)
