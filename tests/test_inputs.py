"""How samples are handed to a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerscope import inputs

A, B = torch.zeros(4, 3), torch.ones(4, 2)


class One(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class Two(nn.Module):
    def forward(self, image: Any, age: Any = None) -> Any:
        return image, age


class Anything(nn.Module):
    def forward(self, **options: Any) -> Any:
        return options


@pytest.mark.parametrize(
    ("model", "x", "given"),
    [
        (One(), A, A),
        (One(), (A, B), (A, B)),
        (One(), {"a": A}, {"a": A}),
        (One(), {"x": A}, A),
        (Two(), (A, B), (A, B)),
        (Two(), [A, B], (A, B)),
        (Two(), A, (A, None)),
        (Two(), {"image": A, "age": B}, (A, B)),
        (Two(), {"photo": A}, ({"photo": A}, None)),
        (Two(), (A, B, A), ((A, B, A), None)),
        (Anything(), {"a": A, "b": B}, {"a": A, "b": B}),
    ],
)
def test_a_network_gets_its_inputs_as_its_forward_takes_them(model: nn.Module, x: Any, given: Any) -> None:
    got = inputs.call(model, x)
    assert got is given or (not isinstance(given, Tensor) and got == given)


def test_every_tensor_is_found_and_changed_wherever_it_is() -> None:
    @dataclass
    class Pack:
        image: Tensor
        size: int

    x = {"pack": Pack(A, 3), "pair": (A, [B, "text"]), "flag": True}
    assert [name for name, _ in inputs.named(x)] == ["x['pack'].image", "x['pair'][0]", "x['pair'][1][0]"]
    first = inputs.pick(x, slice(2))
    assert first["pack"].image.shape == (2, 3)
    assert first["pack"].size == 3
    assert first["pair"][1][0].shape == (2, 2)
    assert first["pair"][1][1] == "text"
    assert inputs.shapes(x["pair"]) == "[0] [4, 3], [1][0] [4, 2]"


def test_the_samples_are_the_first_floats() -> None:
    ids = torch.arange(6)
    assert inputs.main({"ids": ids, "x": A}) is A
    assert inputs.main((torch.tensor(1.0), ids)) is ids
    assert inputs.main("nothing") is None
    assert inputs.is_even((A, B, torch.tensor(1.0)), 4)
    assert not inputs.is_even((A, ids), 4)
