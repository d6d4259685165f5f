"""Names, batches, and everything that can stand for a data set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from layerscope import data
from layerscope.data import Dataset
from layerscope.errors import DataError, SpecError

X = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 5


def test_the_same_seed_draws_the_same_batch_and_another_seed_another() -> None:
    (a, _), (b, _), (c, _) = (data.batch("digits", 32, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_batch_holds_different_samples_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    x, y = data.batch((torch.arange(50.0)[:, None], torch.zeros(50, dtype=torch.int64)), 50, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(x.flatten().tolist()) == list(range(50))
    assert not torch.equal(x.flatten(), torch.arange(50.0))
    assert y.shape == (50,)


def test_tensors_a_dataset_and_a_loader_are_data() -> None:
    assert data.batch((X, Y), 4)[0].shape == (4, 3, 4, 4)
    assert data.as_dataset((X, Y)).classes == 5
    assert data.as_dataset([X, Y], classes=7).classes == 7
    kept = Dataset("mine", X, Y, 5)
    assert data.as_dataset(kept) is kept
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    assert torch.equal(data.as_dataset(loader).x, X)
    first, labels = data.batch(loader, 8)
    assert torch.equal(first, X[:8])
    assert torch.equal(labels, Y[:8])


def test_a_batch_from_an_endless_iterable_reads_no_further_than_it_must() -> None:
    def forever():
        while True:
            yield X, Y

    assert len(data.batch(forever(), 45)[0]) == 45


def test_a_dataset_says_what_it_is() -> None:
    assert repr(Dataset("mine", X, Y, 5)) == "Dataset('mine', 20 x (3, 4, 4), 5 classes)"
    assert len(Dataset("mine", X, Y, 5).take([3, 1])) == 2


def with_nan() -> torch.Tensor:
    bad = X.clone()
    bad[3, 0, 0, 0] = float("nan")
    bad[5] = float("inf")
    return bad


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X.to(torch.uint8), Y, r"uint8 values.*x.float\(\) / 127.5 - 1"),
        (X.int(), Y, "int32 values"),
        (X.long()[:, None], Y, "int64 values"),
        (with_nan(), Y, "2 of 20 samples hold NaN"),
        (X, Y[:19], "y has shape"),
        (X, Y[:, None], "y has shape"),
        (X, Y.float(), "float32 values; expected int64"),
        (X, Y.int(), "int32 values; expected int64"),
        (X, Y - 1, "labels run from -1 to 3"),
        (X[:0], Y[:0], "at least one sample"),
        (torch.zeros(20), Y, "at least one sample"),
    ],
)
def test_damaged_tensors_are_refused(x: torch.Tensor, y: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        data.as_dataset((x, y))


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels run from 0 to 4; with 3 classes"):
        Dataset("mine", X, Y, 3)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "int is no data"),
        ([(X, "labels")], "a tuple of Tensor, str"),
        (["digits"], "a str"),
        ([], "0 samples"),
        ([(X, Y), (X[:, :2], Y)], "different shapes"),
    ],
)
def test_what_is_no_data_is_named(source: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        data.as_dataset(source)


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "many"])
def test_batch_sizes_that_cannot_be(size: object) -> None:
    with pytest.raises(DataError, match="whole number"):
        data.batch("digits", size)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"360 samples, fewer than the 361"):
        data.batch("digits", 361, split="test")
    with pytest.raises(DataError, match="20 samples, fewer than the 21"):
        data.batch([(X, Y)], 21)


def test_unknown_names_and_splits_get_near_misses() -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        data.load("fashion_mnist")
    with pytest.raises(DataError, match="did you mean 'train'"):
        data.load("digits", "trian")
    with pytest.raises(SpecError, match="key=value"):
        data.load("digits:32")


def test_listing_data_sets_loads_no_torch() -> None:
    code = (
        "import sys; from layerscope import data; data.parse('digits:size=8'); "
        "[data.info(n) for n in data.names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
