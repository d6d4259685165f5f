import itertools

import pytest
import torch
from torch.nn import functional as F

from layerscope.theory.padding import border, flat_factor, kept_by_layer, perron_factor


def seen(sides, width=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(8, width, sides[0], sides[0], generator=g)
    moments = [float(h.square().mean())]
    for side in sides:
        w = torch.randn(width, width, 3, 3, generator=g) * (2.0 / (9 * width)) ** 0.5
        h = F.conv2d(h, w, padding=1, stride=h.shape[-1] // side).relu()
        moments.append(float(h.square().mean()))
    return [b / a for a, b in itertools.pairwise(moments)]


@pytest.mark.parametrize("sides", [(8,) * 6, (4,) * 6, (8, 8, 4, 4, 2, 2, 2)])
def test_the_profile_recursion_is_what_nets_lose(sides):
    ratios = [sum(r) / 16 for r in zip(*(seen(sides, seed=s) for s in range(16)), strict=True)]
    product, expected = 1.0, 1.0
    for ratio, kept in zip(ratios, kept_by_layer(sides), strict=True):
        product, expected = product * ratio, expected * kept
    assert product == pytest.approx(expected, rel=0.12)


def test_the_two_ends_of_the_law():
    for side in (2, 4, 8, 16):
        factors = kept_by_layer([side] * 200)
        assert factors[0] == pytest.approx(flat_factor(side))
        assert factors[-1] == pytest.approx(perron_factor(side), rel=1e-6)
    assert flat_factor(2) == pytest.approx(4 / 9) == pytest.approx(perron_factor(2))


@pytest.mark.parametrize(("side", "before"), [(1, 1), (2, 2), (3, 3), (8, 8), (4, 8), (2, 3)])
def test_the_border_against_counting(side, before):
    stride = -(-before // side)
    unfolded = F.unfold(torch.ones(1, 1, before, before), 3, padding=1, stride=stride)[0].T  # [position, tap]
    both = unfolded @ unfolded.T / 9
    own = both.diag()
    assert len(own) == side * side
    different = ~torch.eye(len(own), dtype=torch.bool)
    said = border(side, before)
    assert said.met == pytest.approx(float(own.mean()), abs=1e-6)
    assert said.leak == pytest.approx(float((own * (1 - own)).mean()), abs=1e-6)
    if side > 1:
        assert said.shared == pytest.approx(float(both[different].mean()), abs=1e-6)
        assert said.leak_apart == pytest.approx(float((both - own[:, None] * own)[different].mean()), abs=1e-6)
