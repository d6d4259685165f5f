"""The normalized transformer: everything of length one, and the formula of its residual add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import nets
from layerscope.errors import SpecError
from layerscope.nets.sphere import SphereAdd

TOKENS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))


def build(options: str = "", norm: str = "none") -> nn.Module:
    return nets.build(f"gpt:width=16,depth=2,placement=sphere{options}", norm, in_shape=(7,), classes=11)


def lengths(x: Tensor, dim: int = -1) -> Tensor:
    return x.detach().norm(dim=dim)


def test_hidden_states_have_length_one() -> None:
    net, seen = build(), []
    for add in (m for m in net.modules() if isinstance(m, SphereAdd)):
        add.register_forward_hook(lambda m, i, o: seen.append(o))
    net(TOKENS)
    assert len(seen) == 4
    for state in seen:
        torch.testing.assert_close(lengths(state), torch.ones(3, 7))


def test_weights_have_length_one_along_the_channels_of_the_stream() -> None:
    net = build()
    block = net.blocks[0]
    attention, feed_forward = block.attention.branch, block.feed_forward.branch
    for layer in (attention.query, attention.key, attention.value, feed_forward.up, net.head.linear):
        torch.testing.assert_close(lengths(layer.weight, 1), torch.ones(len(layer.weight)))
    for layer in (attention.out, feed_forward.down):
        torch.testing.assert_close(lengths(layer.weight, 0), torch.ones(layer.weight.shape[1]))


def test_only_the_direction_of_a_weight_counts() -> None:
    net = build().double()
    before = net(TOKENS)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("weight.original") or name == "embed.weight":
                p.mul_(3.0)
        net.position.mul_(3.0)
    torch.testing.assert_close(net(TOKENS), before)


def test_an_add_is_a_step_along_the_sphere() -> None:
    add = build().double().blocks[0].feed_forward
    h = F.normalize(torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)
    towards = add.branch(h)
    towards = towards / towards.norm(dim=-1, keepdim=True)
    stepped = h + 0.05 * (towards - h)  # alpha is 0.05 at the start
    torch.testing.assert_close(add(h), stepped / stepped.norm(dim=-1, keepdim=True))


def test_deep_networks_take_smaller_steps() -> None:
    deep = nets.build("vit:width=8,heads=2,depth=40,patch=2,placement=sphere", "none", in_shape=(1, 4, 4))
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(deep.blocks[0].attention.alpha(x), x / 40)


def test_attention_logits_are_cosines_times_the_root_of_the_head_width() -> None:
    attention = build().blocks[0].attention.branch
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    queries = attention.query_norm(attention._split(attention.query(100 * x)))
    torch.testing.assert_close(lengths(queries), torch.ones(2, 4, 5))
    assert attention.scale == pytest.approx(2.0)


def test_every_parameter_learns() -> None:
    net = build()
    F.cross_entropy(net(TOKENS), TOKENS).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "norm", "says"),
    [("", "layer", "no place for layer"), (",branch=depth", "none", "branch"), (",qk_norm=true", "none", "qk_norm")],
)
def test_what_the_sphere_has_no_room_for(options: str, norm: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build(options, norm)
