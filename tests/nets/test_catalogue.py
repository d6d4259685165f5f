"""Names, parameters and their errors, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from layerscope import nets
from layerscope.errors import SpecError
from layerscope.spec import Spec


def test_every_name_has_a_short_summary_and_checked_defaults() -> None:
    assert len(nets.names()) == len(set(nets.names())) >= 12
    for name in nets.names():
        info = nets.info(name)
        assert info.name == name
        assert 10 < len(info.summary) <= 70
        assert info.source
        for param in info.params:
            assert param.read(param.default, name) == param.default
            assert param.text


def test_parse_keeps_the_order_and_round_trips() -> None:
    spec = nets.parse("resnet56:skipinit=true,width=16")
    assert spec == Spec("resnet56", (("skipinit", True), ("width", 16)))
    assert nets.parse(str(spec)) == spec
    assert nets.parse(spec) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resnet57", "resnet56"),
        ("cfg20", "cfg_20"),
        ("resnet56:widht=16", "width"),
        ("resnet56:width=0", "at least 1"),
        ("resnet56:width=1.5", "whole number"),
        ("resnet56:skipinit=1", "true or false"),
        ("vit:placement=middle", "pre, post, peri, sphere"),
        ("vit:placement=sphere", "no place for batch; use norm none"),
        ("vit:heads=3", "do not divide"),
        ("vit:branch=deepnorm", "placement=post"),
        ("plain:depth=2", "at least 3"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        nets.build(text)


def test_listing_networks_loads_no_torch() -> None:
    code = (
        "import sys; from layerscope import nets; nets.parse('vit:depth=2'); "
        "[nets.info(n) for n in nets.names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
