"""Plan, apply, undo on torch's own norm classes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from layerscope import norms
from layerscope.errors import SpecError, SwapError
from layerscope.surgery import Known, count_activations, plan_swap, register_adapter

CASES = [  # norm module, an input for it
    (lambda: nn.BatchNorm1d(12), (5, 12)),
    (lambda: nn.BatchNorm1d(12), (5, 12, 7)),
    (lambda: nn.BatchNorm2d(12), (5, 12, 3, 3)),
    (lambda: nn.BatchNorm3d(12), (5, 12, 2, 3, 3)),
    (lambda: nn.SyncBatchNorm(12), (5, 12, 3, 3)),
    (lambda: nn.InstanceNorm1d(12, affine=True), (5, 12, 7)),
    (lambda: nn.InstanceNorm2d(12), (5, 12, 3, 3)),
    (lambda: nn.InstanceNorm3d(12), (5, 12, 2, 3, 3)),
    (lambda: nn.GroupNorm(4, 12), (5, 12, 3, 3)),
    (lambda: nn.GroupNorm(4, 12), (5, 12, 7)),
    (lambda: nn.LayerNorm(12), (5, 7, 12)),
    (lambda: nn.LayerNorm(12), (5, 12)),
    (lambda: nn.LayerNorm(12), (5, 3, 4, 12)),
    (lambda: nn.LayerNorm((12, 3, 3)), (5, 12, 3, 3)),
    (lambda: nn.RMSNorm(12), (5, 7, 12)),
]


def channel_axis(make, shape):
    return len(shape) - 1 if type(make()) in (nn.LayerNorm, nn.RMSNorm) and shape[-1] == 12 else 1


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("with_example", [True, False])
def test_every_torch_norm_becomes_a_group_norm_over_the_right_axis(make, shape, with_example):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(make())
    applied = plan_swap(net, "group:size=3", example=x if with_example else None).apply()
    got = applied.model(x)
    axis = channel_axis(make, shape)
    rows = x.movedim(axis, -1)  # the definition: statistics of 3 channels and, but for tokens, of all positions
    per_token = axis != 1
    flat = rows.reshape(-1, 1, 12) if per_token else rows.reshape(shape[0], -1, 12)
    groups = flat.reshape(flat.shape[0], flat.shape[1], 4, 3)
    mean = groups.mean((1, 3), keepdim=True)
    var = groups.var((1, 3), correction=0, keepdim=True)
    want = ((groups - mean) / torch.sqrt(var + 1e-5)).reshape(rows.shape).movedim(-1, axis)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_undo_restores_objects_and_values(make, shape):
    net = nn.Sequential(nn.Identity(), make(), nn.ReLU())
    module, state = net[1], copy.deepcopy(net.state_dict())
    with plan_swap(net, "dyt").apply():
        assert net[1] is not module
        net(torch.randn(shape)).sum().backward()
    assert net[1] is module
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())


def test_nothing_happens_before_apply():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU())
    net[2].eval()
    modules, state, rng = list(net.modules()), copy.deepcopy(net.state_dict()), torch.get_rng_state()
    plan_swap(net, "group:size=4", example=torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert list(net.modules()) == modules
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in net] == [True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_buffers_that_change_also_in_eval_mode_are_put_back():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    net = nn.Sequential(Counter(), nn.BatchNorm2d(3))
    plan_swap(net, "layer", example=torch.randn(2, 3, 4, 4))
    assert net[0].calls == 0


def test_affine_values_dtype_flags_and_running_statistics_are_carried():
    net = nn.Sequential(nn.BatchNorm2d(6)).double()
    old = net[0]
    nn.init.uniform_(old.weight), nn.init.uniform_(old.bias), nn.init.uniform_(old.running_mean)
    old.bias.requires_grad_(False)
    old.eval()
    plan_swap(net, "ghost").apply()
    new = net[0]
    assert torch.equal(new.weight, old.weight)
    assert new.weight is not old.weight
    assert torch.equal(new.bias, old.bias)
    assert torch.equal(new.running_mean, old.running_mean)
    assert new.weight.dtype == torch.float64
    assert (new.weight.requires_grad, new.bias.requires_grad, new.training) == (True, False, False)


@pytest.mark.parametrize(("spec", "places"), [("batch:gain=2", (0, 2)), ("batch:gain=2,where=2nd", (2,))])
def test_an_initial_gain_survives_the_exchange(spec: str, places: tuple[int, ...]):
    net = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    nn.init.zeros_(net[4].weight)  # silent, and stays so
    plan_swap(net, spec).apply()
    for i in (0, 2):
        assert torch.equal(net[i].weight, torch.full((6,), 2.0 if i in places else 1.0))
    assert not net[4].weight.any()


@pytest.mark.parametrize("spec", ["mixture:k=3", "mixture:k=2,eps=0.001", "mixture:k=3,posterior=channel,scale=unit"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_trained_batch_norm_keeps_its_function_as_a_mixture(spec: str, affine: bool):
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-2, affine=affine)).double()

    old, x = net(), torch.randn(4, 3, 9, 9, dtype=torch.float64)
    for p in old.parameters():
        nn.init.normal_(p)
    for _ in range(3):
        old(2 * torch.randn(8, 3, 9, 9, dtype=torch.float64) + 1)
    want = old.eval()(x)
    torch.testing.assert_close(plan_swap(old, spec).apply().model(x), want, rtol=1e-9, atol=1e-9)
    fresh = plan_swap(net(), spec).apply().model
    assert not fresh[1].seeded  # nothing learned, so nothing to keep: the first batch seeds it
    afresh = plan_swap(old, "batch", keep_affine=False).apply().model
    assert not plan_swap(afresh, spec, keep_affine=False).apply().model[1].seeded


@pytest.mark.parametrize("spec", ["mixture", "mixture:posterior=channel", "mode"])
def test_a_mixture_can_be_exchanged_in_its_turn(spec: str):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), norms.build(spec, 6), nn.ReLU(), norms.MixtureNorm2d(6, 2))
    plan = plan_swap(net, "group:size=3")
    assert [s.kind for s in plan.swapped] == [type(net[1]).__name__, "MixtureNorm2d"]
    undone = plan.apply()
    assert type(net[1]) is type(net[3]) is type(norms.build("group:size=3", 6))
    undone.undo()
    assert isinstance(net[3], norms.MixtureNorm2d)


def test_affine_can_start_afresh():
    net = nn.Sequential(nn.BatchNorm2d(6))
    nn.init.zeros_(net[0].weight)
    plan = plan_swap(net, "layer", keep_affine=False)
    assert "start with scale 0" in plan.notes[0]
    assert "the new norms start at 1" in plan.notes[0]
    assert "the new norms keep that" in plan_swap(net, "layer").notes[0]
    assert "none has no such scale" in plan_swap(net, "none").notes[0]
    plan.apply()
    assert torch.equal(net[0].weight, torch.ones(6))


def test_a_frozen_norm_stays_frozen():
    net = nn.Sequential(nn.BatchNorm2d(6)).requires_grad_(False)
    plan_swap(net, "dyt").apply()
    assert not any(p.requires_grad for p in net.parameters())


def test_a_norm_on_another_device_and_dtype_is_followed():
    net = nn.Sequential(nn.Conv2d(3, 6, 1, device="meta", dtype=torch.bfloat16), nn.InstanceNorm2d(6))
    plan_swap(net, "group:size=2").apply()
    assert net[1].weight.device.type == "meta"
    assert net[1].weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "channels", "becomes", "note"),
    [
        ("group:size=8", 12, "group:size=6", "size=8 does not divide 12 channels: size=6"),
        ("group:groups=32", 24, "group:groups=24", "groups=32 does not divide 24 channels: groups=24"),
        ("group:groups=32", 64, "group:groups=32", ""),
        ("evonorm-s0", 40, "evonorm-s0:groups=40", "groups=32 does not divide 40 channels: groups=40"),
    ],
)
def test_group_counts_that_do_not_divide_are_adapted_and_reported(spec, channels, becomes, note):
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
    site = plan_swap(net, spec).sites[0]
    assert site.becomes == becomes
    assert note in site.note
    refused = plan_swap(net, spec, indivisible="refuse").sites[0]
    assert bool(note) == (refused.refused is not None and f"does not divide {channels} channels" in refused.refused)


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        (nn.BatchNorm2d(8), "batch"), (nn.GroupNorm(2, 8), "group:size=4"), (nn.GroupNorm(1, 8), "layer"),
        (nn.LayerNorm(8), "layer"), (nn.InstanceNorm2d(8), "instance"),
    ],
)  # fmt: skip
def test_what_is_asked_for_already_is_kept(module, spec):
    plan = plan_swap(nn.Sequential(module), spec)
    assert (plan.sites[0].status, plan.sites[0].note) == ("keep", "is that already")


def test_another_setting_of_the_same_norm_is_an_exchange():
    assert plan_swap(nn.Sequential(nn.BatchNorm2d(8)), "batch:gain=0.5").swapped
    assert plan_swap(nn.Sequential(nn.InstanceNorm2d(8, track_running_stats=True)), "instance").swapped


def test_a_subclass_of_a_norm_is_refused_until_it_is_taught():
    class Fused(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    class MyNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((6,), 2.0))

        def forward(self, x):
            return x * self.scale.view(-1, 1, 1)

    net = nn.Sequential(Fused(6), MyNorm())
    plan = plan_swap(net, "layer")
    assert not plan.swapped
    assert "a subclass of BatchNorm2d that is not known here" in plan.sites[0].refused
    assert "its class is not known" in plan.sites[1].refused
    old = list(net)
    plan.apply()
    assert list(net) == old

    register_adapter(MyNorm)(lambda m: Known(channels=m.scale.numel(), ndim=(4,), weight=m.scale))
    plan_swap(net, "layer").apply()
    assert isinstance(net[1], norms.LayerNorm)
    assert torch.equal(net[1].weight, torch.full((6,), 2.0))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LazyBatchNorm2d(), "run one batch through the network first"),
        (nn.LocalResponseNorm(2), "does not say how many channels"),
        (nn.LayerNorm((4, 12)), "which one is the channels is unknown"),
        (nn.RMSNorm((4, 12)), "which one is the channels is unknown"),
    ],
)
def test_what_cannot_be_exchanged_says_why(module, reason):
    assert reason in plan_swap(nn.Sequential(module), "layer").sites[0].refused


def test_a_parametrized_norm_is_refused():
    net = nn.Sequential(nn.BatchNorm2d(4))
    parametrize.register_parametrization(net[0], "weight", nn.Softplus())
    assert plan_swap(net, "layer").refused


def test_a_shared_norm_is_one_site_and_one_new_module():
    norm = nn.BatchNorm2d(4)
    net = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(4, 4, 1), norm), "b": norm})
    plan = plan_swap(net, "layer")
    assert len(plan.sites) == 1
    assert plan.sites[0].paths == ("a.1", "b")
    applied = plan.apply()
    assert net["a"][1] is net["b"]
    assert isinstance(net["b"], norms.LayerNorm)
    applied.undo()
    assert net["a"][1] is net["b"] is norm


def test_the_network_itself_may_be_the_norm():
    net = nn.BatchNorm2d(4)
    plan = plan_swap(net, "layer")
    assert "(the network itself)" in str(plan)
    applied = plan.apply()
    assert isinstance(applied.model, norms.LayerNorm)
    assert applied.undo() is net


def test_no_norm_at_all_is_said():
    plan = plan_swap(nn.Linear(2, 2), "layer")
    assert plan.notes == ("no norm module was found",)
    plan.apply().undo()


def test_hooks_are_warned_about():
    net = nn.Sequential(nn.BatchNorm2d(4))
    net[0].register_forward_hook(lambda *_: None)
    assert "its 1 hook(s) stay on the old module" in plan_swap(net, "layer").sites[0].note


def test_a_plan_that_is_out_of_date_is_refused():
    net = nn.Sequential(nn.BatchNorm2d(4))
    plan = plan_swap(net, "layer")
    plan.apply()
    with pytest.raises(SwapError, match="plan again"):
        plan.apply()


def test_surgery_on_a_network_that_had_surgery():
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.BatchNorm1d(7))
    first = plan_swap(net, "group:size=3", example=x).apply()
    second = plan_swap(net, "rms", example=x).apply()
    assert [s.kind for s in second.plan.sites] == ["GroupNorm", "GroupNorm"]
    torch.testing.assert_close(net[0](x), nn.RMSNorm(12, eps=1e-5)(x))
    second.undo()
    first.undo()
    assert [type(m) for m in net] == [nn.LayerNorm, nn.Linear, nn.BatchNorm1d]


class TestOnly:
    net = nn.ModuleDict({f"layer{i}": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for i in range(4)})

    @pytest.mark.parametrize(
        ("only", "chosen"),
        [
            (None, [0, 1, 2, 3]), ("layer1.*", [1]), ("layer[12].*", [1, 2]), (0, [0]), (-1, [3]),
            ([0, "layer2.1"], [0, 2]),
            (lambda s: s.path.endswith("3.1"), [3]), ([], []),
        ],
    )  # fmt: skip
    def test_selects(self, only, chosen):
        plan = plan_swap(self.net, "layer", only=only)
        assert [s.index for s in plan.swapped] == chosen
        assert all(s.note == "not selected" for s in plan.kept)

    @pytest.mark.parametrize(
        ("only", "message"),
        [
            ("layer9.*", "fits no norm; did you mean"), (4, "numbered from 0 to 3"), ("stage:1", "pass example="),
        ],
    )  # fmt: skip
    def test_says_what_does_not_fit(self, only, message):
        with pytest.raises(SwapError, match=message):
            plan_swap(self.net, "layer", only=only)

    def test_by_stage(self):
        net = nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
        x = torch.randn(2, 3, 4, 4)
        assert [s.path for s in plan_swap(net, "layer", example=x, only="stage:2").swapped] == ["2", "3"]
        with pytest.raises(SwapError, match="stages 1 to 2"):
            plan_swap(net, "layer", example=x, only="stage:3")


class TestBadInput:
    def test_unknown_and_ambiguous_specs(self):
        with pytest.raises(SpecError, match="did you mean"):
            plan_swap(nn.BatchNorm2d(4), "grp")
        with pytest.raises(SpecError, match="group:size=32"):
            plan_swap(nn.BatchNorm2d(4), "group:32")

    def test_an_example_that_does_not_run_names_the_layer_and_leaves_the_network_alone(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(5, 5)), nn.BatchNorm2d(4))
        with pytest.raises(SwapError, match=r"does not run through Sequential in '1\.0': RuntimeError"):
            plan_swap(net, "layer", example=torch.randn(2, 3, 4, 4))
        assert net.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_policy(self):
        with pytest.raises(SwapError, match="'nearest' or 'refuse'"):
            plan_swap(nn.BatchNorm2d(4), "layer", indivisible="guess")


def test_the_table_fits_80_columns_and_tells_everything():
    net = nn.ModuleDict(
        {
            "a_rather_long_name_for_a_stage": nn.ModuleDict({"and_for_a_block": nn.BatchNorm2d(12)}),
            "lazy": nn.LazyBatchNorm2d(),
            "done": nn.GroupNorm(2, 12),
        }
    )
    text = str(plan_swap(net, "group:size=8"))
    assert max(map(len, text.splitlines())) <= 80
    assert "ModuleDict -> group:size=8: 1 of 3 norms exchanged, 1 kept, 1 refused" in text
    assert "size=8 does not divide 12 channels: size=6" in text
    assert "run one batch through the network first" in text


def test_transformer_encoder_does_not_bypass_the_new_norm_in_its_fast_path():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    plan_swap(net, "group:size=2").apply()
    with torch.no_grad():
        fast = net(x)
    torch.testing.assert_close(fast, net(x))  # with gradients the fused path is never taken


def test_activations_are_counted_at_every_place():
    act = nn.ReLU()
    net = nn.Sequential(act, act, nn.Softmax(-1), nn.Sequential(nn.GELU()))
    assert count_activations(net) == 3
