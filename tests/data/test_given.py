"""Samples of the caller's own, in whatever form they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from layerscope import data
from layerscope.errors import DataError

X, Y = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 3


class Rows(IterableDataset):  # type: ignore[type-arg]  # torch's own is generic
    def __iter__(self) -> Any:
        return iter([(X[:10], Y[:10]), (X[10:], Y[10:])])


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.tolist(), Y.tolist()),
        [(X[:10], Y[:10]), (X[10:], Y[10:])],
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
        TensorDataset(X, Y),
        [(x.numpy(), y.numpy()) for x, y in DataLoader(TensorDataset(X, Y), batch_size=5)],
        Rows(),
    ],
    ids=["pair", "list", "arrays", "numbers", "batches", "loader", "dataset", "array batches", "iterable dataset"],
)
def test_samples_keep_their_labels_and_the_generator_its_state(source: Any) -> None:
    before = torch.get_rng_state()
    x, y = data.gather(source, 12, at_least=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(x) == len(y) == 12
    rows = (x[:, 0] / 2).long()
    assert len(set(rows.tolist())) == 12
    assert torch.equal(y, rows % 3)


def test_a_loader_that_shuffles_gives_the_same_samples_for_the_same_seed() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    a, b, c = (data.gather(loader, 12, at_least=4, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_fewer_samples_are_taken_where_there_are_fewer_down_to_a_limit() -> None:
    assert len(data.gather((X, Y), 32, at_least=8)[0]) == 20
    assert len(data.gather([(X, Y)], 32, at_least=8)[0]) == 20
    assert len(data.batch("digits", 5000, at_least=8)[0]) == 1437
    for source in ((X, Y), [(X, Y)]):
        with pytest.raises(DataError, match=r"gave 20 sample\(s\), fewer than the 21 asked for: lower batch_size"):
            data.gather(source, 32, at_least=21)


def test_several_inputs_and_no_labels() -> None:
    both = {"a": X, "b": (Y, np.arange(20)), "option": "fast"}
    x, y = data.gather(both, 6, at_least=4)
    assert y is None
    assert x["option"] == "fast"
    assert torch.equal(x["a"][:, 0] / 2, x["b"][1].float())
    joined, labels = data.gather([(both, Y), (both, Y)], 25, at_least=4)
    assert len(joined["a"]) == len(joined["b"][0]) == len(labels) == 25
    assert data.gather(X, 6, at_least=4)[1] is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "int is no data"),
        ([(X, X, Y)], r"a tuple of Tensor, Tensor, Tensor; .* as in \(\(a, b\), y\)"),
        (["digits"], "got a str; expected batches"),
        ([], r"gave 0 sample\(s\)"),
        ([(X, Y), (X[:, :1], Y)], r"do not fit together at x \(\[20, 2\] and \[20, 1\]\).*chunks=1"),
        ([({"a": X}, Y), ({"b": X}, Y)], r"do not fit together at x"),
    ],
)
def test_what_is_no_data_is_named(source: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        data.gather(source, 30, at_least=4)


def test_training_batches_of_the_same_samples_again_and_again() -> None:
    batches = data.repeated((X, Y), 8)
    assert [len(x) for x, _ in batches] == [8, 8] == [len(x) for x, _ in batches]
    assert len({float(v) for x, _ in batches for v in x[:, 0]}) == 16
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    assert [len(x) for x, _ in data.repeated(loader, 8)] == [6, 6, 6, 2]
