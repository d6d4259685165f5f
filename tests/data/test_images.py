"""From bytes to network input: scale, padding, resizing, channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerscope import data
from layerscope.data.images import Images
from layerscope.errors import DataError, SpecError


def images(pixels: np.ndarray) -> Images:
    return Images("toy", pixels.astype(np.uint8), np.zeros(len(pixels), np.int64), 1)


def test_black_is_minus_one_and_white_is_one() -> None:
    x = images(np.array([0, 255, 51]).reshape(1, 1, 1, 3)).take().x
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_padding_is_black_and_centred() -> None:
    x = images(np.full((1, 1, 4, 6), 255)).asked(size=0, pad=8, channels=0, limit=0).take().x
    assert x.shape == (1, 1, 8, 8)
    assert torch.equal(x[0, 0, 2:6, 1:7], torch.ones(4, 6))
    assert x.sum() == 24 - 40


def test_resizing_is_bilinear_without_shift() -> None:
    """Twice the size of a ramp: the closed form of half-pixel-centred bilinear interpolation."""
    ramp = np.array([[0, 100, 200]], np.uint8)[None, None].repeat(3, 2)
    x = images(ramp).asked(size=6, pad=0, channels=0, limit=0).take().x
    expected = torch.tensor([0.0, 25, 75, 125, 175, 200]) / 127.5 - 1
    torch.testing.assert_close(x[0, 0], expected.expand(6, 6))


def test_shrinking_averages_so_that_no_pixel_is_lost() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * 255
    x = images(board[None, None]).asked(size=4, pad=0, channels=0, limit=0).take().x
    assert x[0, 0, 1:3, 1:3].abs().max() < 0.05


def test_grey_and_colour_are_interchangeable() -> None:
    grey = np.arange(16).reshape(1, 1, 4, 4) * 10
    colour = images(grey).asked(size=0, pad=0, channels=3, limit=0)
    x = colour.take().x
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])
    back = images(grey.repeat(3, 1)).asked(size=0, pad=0, channels=1, limit=0).take().x
    torch.testing.assert_close(back, x[:, :1])


def test_options_do_not_change_what_a_sample_is() -> None:
    """A batch taken from the open file equals the same samples of the whole set."""
    x, y = data.batch("digits:size=16,channels=3", 5, seed=3)
    whole = data.load("digits:size=16,channels=3")
    index = torch.randperm(len(whole), generator=torch.Generator().manual_seed(3))[:5]
    assert torch.equal(x, whole.x[index])
    assert torch.equal(y, whole.y[index])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digits:channels=2", "only 1 and 3"),
        ("digits:pad=4", "smaller than the 8 x 8"),
        ("digits:size=-1", "at least 0"),
        ("digits:size=8.5", "whole number"),
        ("digits:sise=8", "size"),
        ("fashion-mnist:download=1", "true or false"),
    ],
)
def test_options_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises((DataError, SpecError), match=says):
        data.load(spec)


def test_limit_keeps_the_head() -> None:
    assert torch.equal(data.load("digits:limit=7").x, data.load("digits").x[:7])
