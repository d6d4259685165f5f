from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layerscope import norms
from layerscope.errors import SpecError
from layerscope.norms import registry
from layerscope.norms.facts import load
from layerscope.norms.grouping import divisors, nearest_divisor, neighbours


@pytest.fixture
def clean_registry() -> Iterator[None]:
    entries, aliases = dict(registry._ENTRIES), dict(registry._ALIASES)
    yield
    for table, kept in ((registry._ENTRIES, entries), (registry._ALIASES, aliases)):
        table.clear()
        table.update(kept)


def test_every_spec_prints_what_it_parses() -> None:
    for text in ("batch", "group:size=8", "group:groups=32,eps=0.001", "sws:gain=1.5", "frn:learn_eps=false"):
        assert str(norms.parse(text)) == text
        assert norms.parse(norms.parse(text)) == norms.parse(text)


def test_aliases_types_and_order_become_canonical() -> None:
    assert str(norms.parse("GN:eps=1,size=8")) == "group:size=8,eps=1.0"
    assert norms.parse("bn").name == norms.parse("BatchNorm").name == "batch"
    assert norms.parse("in").name == "instance"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group:32", ["group:size=32", "group:groups=32"]),
        ("gn:4", ["group:size=4", "group:groups=4"]),
        ("group", ["group:size=32", "group:groups=32"]),
        ("group:size=8,groups=2", ["exactly one"]),
        ("ws-group", ["ws-group:size=32"]),
        ("grup:size=8", ["did you mean", "'group'"]),
        ("group:sise=8", ["no parameter 'sise'", "'size'"]),
        ("none:eps=1", ["takes no parameters"]),
        ("group:size=0", ["whole number", "at least 1"]),
        ("group:size=2.5", ["whole number"]),
        ("batch:eps=0", ["greater than 0"]),
        ("batch:eps=nan", ["number"]),
        ("batch:momentum=1.5", ["at most 1"]),
        ("batch:affine=1", ["true or false"]),
        ("rms:p=2", ["at most 1"]),
    ],
)
def test_a_wrong_spec_says_what_to_write(text: str, said: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        norms.parse(text)
    for piece in said:
        assert piece in str(error.value)


def test_indivisible_channels_name_the_divisors_near_by() -> None:
    with pytest.raises(SpecError, match="group:size=32 or group:size=64"):
        norms.build("group:size=48", 64)
    with pytest.raises(SpecError, match="does not divide 8 channels; near by: ws-group:groups=8"):
        norms.build("ws-group:groups=32", 8)


def test_adapt_takes_the_nearest_divisor() -> None:
    assert str(norms.adapt("group:size=32,eps=0.1", 24)) == "group:size=24,eps=0.1"
    assert str(norms.adapt("group:groups=32", 16)) == "group:groups=16"
    assert str(norms.adapt("ghost:size=7", 16)) == "ghost:size=7"
    assert str(norms.adapt("batch", 16)) == "batch"


@given(channels=st.integers(1, 400), wanted=st.integers(1, 500))
@settings(deadline=None, max_examples=60)
def test_divisors_divide_and_the_nearest_is_nearest(channels: int, wanted: int) -> None:
    brute = [d for d in range(1, channels + 1) if channels % d == 0]
    assert list(divisors(channels)) == brute
    best = nearest_divisor(channels, wanted)
    assert best in brute
    assert all(max(best / wanted, wanted / best) <= max(d / wanted, wanted / d) for d in brute)
    assert set(neighbours(channels, wanted)) <= set(brute)


def test_the_catalog_agrees_with_the_builders_signatures() -> None:
    for name in norms.names():
        entry = norms.info(name)
        for slot, ref in (("norm", entry.norm), ("activation", entry.activation), ("weight", entry.weight)):
            if ref is None:
                continue
            signature = inspect.signature(load(ref)).parameters
            for p in entry.params:
                if slot in p.slots:
                    assert p.name in signature, (name, slot, p.name)
                    default = signature[p.name].default
                    assert default == p.default or (default is None and p.default is None), (name, p.name, default)


def test_listing_and_parsing_load_no_torch() -> None:
    code = (
        "import sys; from layerscope import norms; norms.parse('group:size=8'); norms.recipe('frn').needs_bias; "
        "from layerscope.cli import main; main(['norms']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    for name in norms.names():
        assert any(line.split(" ")[0] == name for line in done.stdout.splitlines()), name


def test_command_line_details_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    from layerscope.cli import main

    main(["norms", "gn"])
    assert "also known as: gn" in capsys.readouterr().out
    main(["norms", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(norms.names())
    assert "eps" in [setting["name"] for setting in listed[1]["settings"]]
    with pytest.raises(SystemExit, match="2"):
        main(["norms", "grp"])
    assert "did you mean" in capsys.readouterr().err


def test_a_users_layer_takes_part_everywhere(clean_registry: None) -> None:
    class Scale(nn.Module):
        def __init__(self, channels: int, alpha: float) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((channels,), alpha))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gain.view(1, -1, *[1] * (x.ndim - 2))

    @norms.register_norm("mine", summary="x times a learned gain", aliases=("my",))
    def mine(channels: int, alpha: float = 0.5, deep: bool = False) -> nn.Module:
        return Scale(channels, alpha)

    assert "mine" in norms.names()
    assert [p.kind for p in norms.info("my").params] == ["float", "bool"]
    layer = norms.build("mine:alpha=0.3", 4)
    torch.testing.assert_close(layer(torch.ones(2, 4)), torch.full((2, 4), 0.3))
    assert isinstance(norms.recipe("mine").activation(4), nn.ReLU)
    with pytest.raises(SpecError, match="alfa"):
        norms.parse("mine:alfa=1")
    with pytest.raises(SpecError, match="already registered"):
        norms.register_norm("mine", summary="again")(mine)
    norms.register_norm("mine", summary="again", replace=True)(mine)
    assert norms.info("mine").summary == "again"


def test_a_users_layer_may_own_the_activation(clean_registry: None) -> None:
    @norms.register_norm("gate", summary="a gate", owns_activation=True)
    def gate(channels: int) -> nn.Module:
        return nn.SiLU()

    made = norms.recipe("gate")
    assert isinstance(made.norm(3), nn.Identity)
    assert isinstance(made.activation(3), nn.SiLU)
    assert isinstance(norms.build("gate", 3), nn.SiLU)
    assert made.owns_activation


def test_registration_refuses_what_no_spec_can_say(clean_registry: None) -> None:
    def odd(channels: int, table: tuple[int, ...] = ()) -> nn.Module:
        return nn.Identity()

    def required(channels: int, alpha: float) -> nn.Module:
        return nn.Identity()

    with pytest.raises(SpecError, match="table"):
        norms.register_norm("odd", summary="")(odd)
    register = norms.register_norm("Not A Name", summary="")
    with pytest.raises(SpecError, match="no name"):
        register(required)
    norms.register_norm("req", summary="")(required)
    with pytest.raises(SpecError, match="needs alpha="):
        norms.parse("req")


def test_weight_norms_are_no_layer_by_themselves() -> None:
    for name in ("weight", "sws", "weight-centred"):
        with pytest.raises(SpecError, match="weight\\(conv\\)"):
            norms.build(name, 8)
        assert isinstance(norms.recipe(name).norm(8), nn.Identity)
    assert type(norms.build("none", 8)) is nn.Identity


def test_facts_of_the_recipes() -> None:
    facts = {n: norms.recipe(norms.info(n).example or n) for n in norms.names()}
    assert {n for n, r in facts.items() if r.needs_bias} == {"weight", "sws"}
    assert {n for n, r in facts.items() if r.acts_on_weights} == {"weight", "sws", "weight-centred", "ws-group"}
    assert {n for n, r in facts.items() if r.owns_activation} == {"frn", "evonorm-b0", "evonorm-s0", "weight", "proxy"}
    assert norms.recipe("layer").group_size(64) == 64
    assert norms.recipe("in").group_size(64) == 1
    assert norms.recipe("group:groups=4").group_size(64) == 16
    assert norms.recipe("evonorm-s0").group_size(64) == 2
    assert norms.recipe("evonorm-s0").group_size(16) == 1
    assert norms.recipe("batch").group_size(64) is None
    for bad in (0, -3, 2.0, True):
        with pytest.raises(SpecError, match="channels"):
            norms.build("batch", bad)  # type: ignore[arg-type]  # what is under test


def test_a_users_layer_that_cannot_be_built_is_said_to_be_the_users(clean_registry: None) -> None:
    def raises(channels: int) -> nn.Module:
        raise ValueError("no memory")

    def text(channels: int) -> str:
        return "batch"

    def nothing() -> nn.Module:
        return nn.Identity()

    for maker, says in ((raises, "ValueError: no memory"), (text, "built a str, not"), (nothing, "TypeError")):
        norms.register_norm("mine", summary="", replace=True)(maker)
        with pytest.raises(SpecError, match=f"norm 'mine' .*{says}"):
            norms.build("mine", 8)


@pytest.mark.parametrize("spec", [None, 3, nn.LayerNorm, nn.BatchNorm2d(3)])
def test_a_norm_is_named_by_a_string(spec: object) -> None:
    with pytest.raises(SpecError, match="a norm is named by a string"):
        norms.parse(spec)
