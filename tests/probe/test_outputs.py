"""Finding the output a loss can be taken on, and the loss."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from layerscope.errors import ProbeError
from layerscope.probe import profile
from layerscope.probe.outputs import default_loss, first_tensor, loss_of, pick


@dataclass
class ModelOutput:
    hidden: Tensor
    logits: Tensor


Pair = namedtuple("Pair", "features scores")
A, B = torch.randn(4, 7), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("output", "select", "expected"),
    [
        (A, None, A),
        ((A, B), None, A),
        ((A, B), 1, B),
        ([{"x": A}, B], None, A),
        ({"features": A, "logits": B}, None, B),
        ({"features": A, "scores": B}, "scores", B),
        (ModelOutput(A, B), None, B),
        (ModelOutput(A, B), "hidden", A),
        (Pair(A, B), "scores", B),
        (Pair(A, B), 1, B),
        ({"ids": torch.arange(4), "scores": B}, None, B),
        ({"deep": {"er": B}}, lambda o: o["deep"]["er"], B),
        (OrderedDict(out=A), None, A),
    ],
)
def test_pick(output: Any, select: Any, expected: Tensor) -> None:
    assert pick(output, select) is expected


@pytest.mark.parametrize(
    ("output", "select", "message"),
    [
        ({"features": A}, "feature", r"dict\(features: float32\[4, 7\]\) \(did you mean 'features'\?\)"),
        ("text", None, r"the model returned str, in which there is no floating-point tensor"),
        ({"ids": torch.arange(4)}, None, r"dict\(ids: int64\[4\]\).*output='key', output=index or output=function"),
        ((A, B), 5, r"output=5 is not in what the model returned: tuple\(0: float32\[4, 7\], 1: float32\[4, 3\]\)"),
        (None, None, r"the model returned None: does its forward lack a return"),
    ],
)
def test_pick_lists_what_there_is(output: Any, select: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        pick(output, select)


def test_first_tensor() -> None:
    assert first_tensor((None, {"a": A})) is A
    assert first_tensor("nothing") is None


def test_parts_of_a_loss_are_summed() -> None:
    parts = {"boxes": torch.tensor(1.5), "classes": torch.tensor(2.0)}
    assert pick(parts, None).item() == 3.5
    assert pick({"accuracy": torch.tensor(0.1), "loss": torch.tensor(2.0)}, None).item() == 2.0
    assert pick((torch.tensor(1.5), torch.tensor(2.0)), None).item() == 1.5


def test_losses() -> None:
    y = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(loss_of(B, y, "cross_entropy"), functional.cross_entropy(B, y))
    p = torch.softmax(torch.randn(4, 3), 1)
    torch.testing.assert_close(loss_of(B, p, "cross_entropy"), functional.cross_entropy(B, p))
    torch.testing.assert_close(loss_of(B, B + 1, "mse"), torch.tensor(1.0))
    torch.testing.assert_close(loss_of(B[:, :1], torch.zeros(4), "mse"), B[:, 0].square().mean())
    torch.testing.assert_close(loss_of(B, y, lambda o, t: o.sum() * len(t)), B.sum() * 4)
    tokens, labels = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    expected = functional.cross_entropy(tokens.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss_of(tokens, labels, "cross_entropy"), expected)
    maps, pixels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    torch.testing.assert_close(loss_of(maps, pixels, "cross_entropy"), functional.cross_entropy(maps, pixels))


def test_default_loss_without_labels() -> None:
    torch.testing.assert_close(loss_of(B, None, "cross_entropy"), functional.cross_entropy(B, torch.arange(4) % 3))
    torch.testing.assert_close(default_loss(B[:, :1]), B[:, 0].square().mean() / 2)
    torch.testing.assert_close(default_loss(A[None]), A.square().mean() / 2)


def test_models_that_return_structures() -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> ModelOutput:
            h = torch.relu(self.body(x))
            return ModelOutput(h, self.head(h))

    torch.manual_seed(0)
    model, x = Structured(), torch.randn(5, 6)
    seen = profile(model, x)
    assert seen.classifier == "head"
    assert seen["head"].grad_norm is not None
    assert profile(model, x, output="hidden", loss=lambda o, y: o.mean())["head"].grad_norm is None


def test_arrays_are_taken() -> None:
    model = nn.Linear(6, 3)
    x = np.random.default_rng(0).normal(size=(5, 6))
    assert profile(model, (x, np.arange(5) % 3)).in_shape == (6,)
    assert profile(model, (x.tolist(), [0, 1, 2, 0, 1])).in_shape == (6,)
