"""The shipped digits against scikit-learn's copy, and Gaussian noise."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from layerscope import data
from layerscope.errors import DataError


def test_digits_equal_scikit_learns_copy() -> None:
    reference = load_digits()
    ours = data.load("digits", "all")
    assert torch.equal((ours.x[:, 0] + 1) * 8, torch.from_numpy(reference.images).float())
    assert torch.equal(ours.y, torch.from_numpy(reference.target))
    assert (len(ours), ours.classes, ours.in_shape) == (1797, 10, (1, 8, 8))


def test_digits_splits_are_the_head_and_tail_of_the_file() -> None:
    whole, train, test = (data.load("digits", split) for split in ("all", "train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(torch.cat([train.x, test.x]), whole.x)
    assert set(test.y.tolist()) == set(range(10))


def test_digits_are_small_and_carry_their_licence() -> None:
    room = files("layerscope.data")
    assert len(room.joinpath("digits.npz").read_bytes()) < 60_000
    notice = room.joinpath("DIGITS-NOTICE").read_text()
    assert "CC BY 4.0" in notice
    assert "Alpaydin" in notice


def test_gaussian_is_standard_normal_in_any_shape() -> None:
    drawn = data.load("gaussian:shape=3x5x7,samples=4000,classes=4")
    assert drawn.in_shape == (3, 5, 7)
    assert drawn.x.mean().abs() < 0.01
    assert (drawn.x.std() - 1).abs() < 0.01
    assert np.bincount(drawn.y.numpy()).min() > 900
    assert data.load("gaussian:shape=256,samples=2").in_shape == (256,)


def test_gaussian_splits_and_seeds_differ_and_repeat() -> None:
    spec = "gaussian:shape=4,samples=8"
    draws = [data.load(spec), data.load(spec, "test"), data.load(spec + ",seed=1"), data.load(spec + ",seed=1", "test")]
    assert torch.equal(draws[0].x, data.load(spec).x)
    assert not any(torch.equal(a.x, b.x) for i, a in enumerate(draws) for b in draws[:i])


@pytest.mark.parametrize("shape", ["3x", "axb", "3x0x2", "-3", "x"])
def test_gaussian_shapes_that_are_none(shape: str) -> None:
    with pytest.raises(DataError, match="3x32x32"):
        data.load(f"gaussian:shape={shape}")


def test_every_character_of_the_text_is_followed_by_its_target() -> None:
    written = files("layerscope.data").joinpath("text.txt").read_text()
    symbols = sorted(set(written))
    seen = data.load("text:context=16", "all")
    assert seen.classes == len(symbols) == 74
    assert seen.x.dtype == seen.y.dtype == torch.int64
    for i in (0, 7, len(seen) - 1):  # a window starts at every fourth character
        read = "".join(symbols[k] for k in torch.cat([seen.x[i], seen.y[i, -1:]]))
        assert read == written[4 * i : 4 * i + 17]
        assert torch.equal(seen.x[i, 1:], seen.y[i, :-1])


def test_splits_of_the_text_share_no_character() -> None:
    train, test = data.load("text:context=32"), data.load("text:context=32", "test")
    written = data.load("text:context=54589", "all").x[0]
    cut = int(0.9 * (len(written) + 1))
    assert torch.equal(train.x[-1], written[8 * (len(train) - 1) :][:32])
    assert 8 * (len(train) - 1) + 33 <= cut  # its last target, too, lies before the cut
    assert torch.equal(test.x[0], written[cut : cut + 32])


def test_a_context_longer_than_the_text() -> None:
    with pytest.raises(DataError, match="longer than its 5459 characters"):
        data.load("text:context=6000", "test")
    assert len(data.load("text:limit=5")) == 5
