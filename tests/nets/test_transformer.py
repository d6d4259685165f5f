"""Transformers: wiring of their placements, scalings and attention; the language model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import SourceError
from layerscope.nets.tokens import FixedScale, ResidualAdd
from layerscope.nets.transformer import Attention

X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def residuals(net: nn.Module) -> list[ResidualAdd]:
    return [m for m in net.modules() if isinstance(m, ResidualAdd)]


def build(options: str = "", norm: str = "layer") -> nn.Module:
    return nets.build(f"vit:width=16,depth=2,patch=2{options}", norm, in_shape=(2, 8, 8))


def test_attention_agrees_with_torchs_own_layer() -> None:
    attention = next(m for m in build().modules() if isinstance(m, Attention)).double()
    reference = nn.MultiheadAttention(16, 4, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        reference.out_proj.weight.copy_(attention.out.weight)
    x = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, _ = reference(x, x, x)
    torch.testing.assert_close(attention(x), expected)


def test_placements() -> None:
    norm_of = {
        placement: [
            tuple(not isinstance(part, nn.Identity) for part in (r.before, r.inner, r.after))
            for r in residuals(build(f",placement={placement}"))
        ]
        for placement in ("pre", "post", "peri")
    }
    assert set(norm_of["pre"]) == {(True, False, False)}
    assert set(norm_of["post"]) == {(False, False, True)}
    assert set(norm_of["peri"]) == {(True, True, False)}
    assert isinstance(build(",placement=post").norm, nn.Identity)
    assert not isinstance(build().norm, nn.Identity)


def test_a_residual_add_is_what_its_formula_says() -> None:
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    pre = residuals(build())[0]
    torch.testing.assert_close(pre(x), x + pre.branch(pre.before(x)))
    peri = residuals(build(",placement=peri"))[1]
    torch.testing.assert_close(peri(x), x + peri.inner(peri.branch(peri.before(x))))
    deep = residuals(build(",placement=post,branch=deepnorm"))[0]
    assert deep.skip == pytest.approx(4**0.25)
    torch.testing.assert_close(deep(x), deep.after(4**0.25 * x + deep.branch(x)))


def test_branch_scalings() -> None:
    assert all(isinstance(r.scale, FixedScale) for r in residuals(build(",branch=depth")))
    assert residuals(build(",branch=depth"))[0].scale.factor == pytest.approx(1 / math.sqrt(2))
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    for residual in residuals(build(",branch=skipinit")):
        assert torch.equal(residual(x), x)
    scaled = residuals(build(",branch=layerscale"))[0]
    torch.testing.assert_close(scaled(x), x + 0.1 * scaled.branch(scaled.before(x)))


def test_deepnorm_shrinks_value_output_and_feed_forward_weights_only() -> None:
    plain, deep = build(",placement=post"), build(",placement=post,branch=deepnorm")
    beta = (8 * 2) ** -0.25
    for (name, a), (_, b) in zip(plain.named_parameters(), deep.named_parameters(), strict=True):
        shrunk = any(part in name for part in ("value", "out", "up", "down"))
        torch.testing.assert_close(b, beta * a if shrunk else a)


def test_qk_norm_bounds_the_logits() -> None:
    attention = next(m for m in build(",qk_norm=true").modules() if isinstance(m, Attention))
    x = 1e4 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    queries = attention.query_norm(attention._split(attention.query(x)))
    torch.testing.assert_close(queries.square().mean(-1), torch.ones(2, 4, 5))


def test_tokens_are_the_patches_of_the_image() -> None:
    net = build()
    seen = []
    net.embed.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    net(X)
    assert seen[0].shape == (3, 16, 8)
    # token 5 is row 1, column 1 of the 4 x 4 grid of 2 x 2 patches
    torch.testing.assert_close(seen[0][:, 5].sort().values, X[:, :, 2:4, 2:4].flatten(1).sort().values)


def test_batch_norm_sees_every_token_of_the_batch() -> None:
    norm = build(norm="batch").norm
    tokens = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))
    out = norm(tokens).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(16), atol=1e-5, rtol=0)


def test_patches_must_divide_the_image() -> None:
    with pytest.raises(SourceError, match="does not divide"):
        nets.build("vit:patch=3", in_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ("placement=post", 0.99, 1.0),
        ("placement=pre", 0.7, 0.9),
        ("placement=post,branch=depth", 0.1, 0.5),
        ("placement=pre,branch=depth", 0.1, 0.5),
    ],
)
def test_tokens_collapse_after_post_norm_and_not_with_scaled_branches(options: str, low: float, high: float) -> None:
    """Cosine between the tokens of one sample after 24 blocks, Gaussian tokens: Noci et al. 2022, arXiv 2206.03126."""
    net = nets.build(f"vit:width=64,depth=24,patch=1,act=relu,{options}", "layer", in_shape=(64, 4, 8))
    seen = []
    net.blocks.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    net(torch.randn(4, 64, 4, 8, generator=torch.Generator().manual_seed(0)))
    tokens = nn.functional.normalize(seen[0], dim=-1)
    cosines = tokens @ tokens.transpose(1, 2)
    count = cosines.shape[1]
    mean = float((cosines.sum() - cosines.diagonal(dim1=1, dim2=2).sum()) / (len(cosines) * count * (count - 1)))
    assert low < mean <= high + 1e-6


def language_model(norm: str = "layer") -> nn.Module:
    return nets.build("gpt:width=16,depth=2", norm, in_shape=(8,), classes=11)


def test_a_language_model_gives_scores_where_cross_entropy_wants_them() -> None:
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    out = language_model()(tokens)
    assert out.shape == (3, 11, 8)
    assert nn.functional.cross_entropy(out, tokens).isfinite()
    assert language_model()(tokens[:, :5]).shape == (3, 11, 5)  # shorter samples are fine


def test_no_character_sees_a_later_one() -> None:
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    net = language_model("rms")
    before, after = net(tokens), net(changed)
    torch.testing.assert_close(after[..., :5], before[..., :5])
    assert not torch.allclose(after[..., 5:], before[..., 5:])


def test_a_language_model_wants_rows_of_tokens() -> None:
    with pytest.raises(SourceError, match="rows of tokens"):
        nets.build("gpt", in_shape=(3, 8, 8))
