from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from layerscope import training
from layerscope.errors import LayerscopeError
from layerscope.methods import medic
from layerscope.methods.medic import MedicError, attacks, baselines, suggest_taps, tap_statistics
from layerscope.methods.medic.cloning import default_epochs
from layerscope.methods.medic.step import CloneStep, Teacher
from layerscope.methods.medic.taps import tapped
from methods.medic.medic_nets import same, samples, shapes, tiny

QUICK = {"epochs": 2, "batch_size": 8, "progress": False}


def teacher(seed: int = 0, **options) -> nn.Sequential:
    """A network whose weights are not those of its initialization."""
    model = tiny(seed, **options)
    x, y = samples()
    training.fit(model, (x, y), epochs=3, batch_size=8, lr=0.05, progress=False)
    return model


def step_for(model: nn.Module, student: nn.Module, stack, *, per_sample: bool = True, kind="signed"):
    x, _ = samples()
    model = model.eval().requires_grad_(False)
    taps = suggest_taps(model, "conv+norm", x)
    theirs, ours = stack.enter_context(tapped(model, taps)), stack.enter_context(tapped(student, taps))
    lesson = Teacher(model, taps, theirs, tap_statistics(model, x, taps), kind, per_sample=per_sample, sharpness=5.0)
    return CloneStep(lesson, ours, 1.0)


@pytest.fixture
def stack():
    from contextlib import ExitStack

    with ExitStack() as held:
        yield held


def test_clone_of_the_teacher_itself_has_no_loss_and_no_gradient(stack):
    model = teacher()
    student = copy.deepcopy(model).eval()
    _, numbers = step_for(model, student, stack)(student, samples())
    assert numbers["clone"].item() == 0
    step = step_for(model, student, stack)
    loss, numbers = step(student, samples())
    only_labels = torch.autograd.grad(numbers["cross_entropy"].new_zeros(()) + loss, student.parameters())
    plain = torch.autograd.grad(
        torch.nn.functional.cross_entropy(student(samples()[0]), samples()[1]), student.parameters()
    )
    assert all(torch.equal(a, b) for a, b in zip(only_labels, plain, strict=True))


def test_channel_scale_changes_nothing(stack):
    x, y = samples()
    model, student = teacher(), tiny(5).eval()
    scaled, scaled_student = copy.deepcopy(model), copy.deepcopy(student)
    for net in (scaled, scaled_student):
        # conv 0's channel 2 times 7, undone by the norm's running variance: the rest of the network sees the same
        with torch.no_grad():
            net[0].weight[2] *= 7
            net[0].bias[2] *= 7
            net[1].running_mean[2] *= 7
            net[1].running_var[2] = (net[1].running_var[2] + net[1].eps) * 49 - net[1].eps
    plain = step_for(model, student, stack)
    other = step_for(scaled, scaled_student, stack)
    (_, w), (_, w_scaled) = plain.teacher(x, y), other.teacher(x, y)
    for name in w:
        assert torch.allclose(w[name], w_scaled[name], atol=1e-5), name
    assert plain(student, (x, y))[0].item() == pytest.approx(other(scaled_student, (x, y))[0].item(), rel=1e-5)


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_batch_said_twice(stack, per_sample):
    x, y = samples(8)
    # an unsure teacher, so that its gradients are not all but zero
    step = step_for(tiny(3), tiny(4).eval(), stack, per_sample=per_sample)
    once = step.teacher(x, y)[1]["0"]
    twice = step.teacher(torch.cat((x, x)), torch.cat((y, y)))[1]["0"]
    assert torch.allclose(once, twice[:8], rtol=1e-6, atol=0) == per_sample
    if per_sample:
        student = tiny(4).eval()
        step = step_for(tiny(3), student, stack)
        one = step(student, (x, y))[0].item()
        assert step(student, (torch.cat((x, x)), torch.cat((y, y))))[0].item() == pytest.approx(one, rel=1e-6)


def test_clone_weight_zero_is_training_from_scratch():
    model = teacher()
    cloned = medic.clone(model, samples(), clone_weight=0, seed=3, **QUICK)
    plain = medic.fresh_like(model, 3)
    training.fit(
        plain, samples(), lr=1e-2, schedule="cosine", seed=3,
        optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=1e-4), **QUICK,
    )  # fmt: skip
    assert same(cloned.model, plain)
    assert cloned.report.effective_clone_weight == 0


def test_same_seed_same_clone():
    model = teacher()
    clones = [medic.clone(model, samples(), seed=seed, **QUICK) for seed in (1, 1, 2)]
    assert same(clones[0].model, clones[1].model)
    assert not same(clones[0].model, clones[2].model)
    assert replace(clones[0].report, seconds=0) == replace(clones[1].report, seconds=0)


def state_of(model: nn.Module):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [getattr(m, "inplace", None) for m in model.modules()],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_callers_model_is_untouched(fails):
    model = teacher().train()
    model[0].weight.requires_grad_(False)
    model[4].register_forward_hook(lambda *_: None)
    tensors, *rest = state_of(model)
    generator = torch.get_rng_state()

    def on_epoch(epoch, student, record):
        if fails:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            medic.clone(model, samples(), on_epoch=on_epoch, **QUICK)
    else:
        cloned = medic.clone(model, samples(), on_epoch=on_epoch, **QUICK)
        assert not cloned.model.training
        assert all(p.requires_grad for p in cloned.model.parameters())
    after, *others = state_of(model)
    assert all(torch.equal(after[k], v) for k, v in tensors.items())
    assert others == rest
    assert torch.equal(torch.get_rng_state(), generator)


def test_clone_starts_from_nothing_of_the_teacher():
    model = teacher()
    fresh = medic.fresh_like(model, 0)
    for ours, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        assert ours.untyped_storage().data_ptr() != theirs.untyped_storage().data_ptr()
        assert not torch.equal(ours, theirs)


def test_guard_against_the_teachers_own_start():
    wide = {"width": 32}
    model = teacher(7, **wide)
    silent = medic.clone(model, samples(), seed=7, **QUICK).report.warnings
    assert not any("same random weights" in w for w in silent)
    warned = medic.clone(model, samples(), factory=lambda: tiny(7, **wide), **QUICK).report.warnings
    assert any("same random weights" in w for w in warned)


def test_report():
    x, y = samples(20)
    seen = []
    cloned = medic.clone(
        teacher(), (x, y), taps="conv+norm", seed=1, on_epoch=lambda e, m, r: seen.append((e, sorted(r)[0])), **QUICK
    )  # fmt: skip
    report = cloned.report
    assert report.samples_per_class == (7, 7, 6)
    assert report.steps == 4
    assert len(report.cross_entropies) == len(report.clone_losses) == len(report.accuracies) == 2
    assert [t.name for t in report.taps] == ["0", "1", "3", "4"]
    assert [t.neurons for t in report.taps] == [1024, 1024, 256, 256]
    for epoch in range(2):
        assert sum(t.losses[epoch] for t in report.taps) == pytest.approx(report.clone_losses[epoch], rel=1e-5)
    mean = sum(t.total_weight for t in report.taps) / 4
    assert report.effective_clone_weight == pytest.approx(3 * mean)
    assert any("4 of 20 samples" in w for w in report.warnings)
    assert [e for e, _ in seen] == [1, 2]
    import json

    json.dumps(report.to_dict())


def test_inert_impact_is_said():
    x, y = samples()
    cloned = medic.clone(teacher(), (x, y), impact_reduction="mean", **QUICK)
    assert any("impact criterion is inert" in w for w in cloned.report.warnings)
    assert "importance='activation'" in " ".join(cloned.report.warnings)
    alone = medic.clone(teacher(), (x, y), importance="activation", **QUICK).report
    assert all(t.effective_impact is None for t in alone.taps)


@pytest.mark.parametrize(
    "kind", ["magnitude", "impact", "uniform", lambda z, g, tau: torch.ones_like(z) / z[0].numel()]
)
def test_every_importance_runs(kind):
    report = medic.clone(teacher(), samples(), importance=kind, **QUICK).report
    if not isinstance(kind, str) or kind == "uniform":
        assert report.effective_clone_weight == pytest.approx(3.0)


def test_preset():
    report = medic.clone(teacher(), samples(), preset="official", batch_size=8, progress=False).report
    chosen = dict(report.settings)
    assert (chosen["clone_weight"], chosen["epochs"], chosen["impact_reduction"]) == ("10.0", "60", "mean")
    assert chosen["taps"] == "conv+norm"
    assert len(report.taps) == 4
    with pytest.raises(MedicError, match="decides epochs"):
        medic.clone(teacher(), samples(), preset="official", epochs=3)
    with pytest.raises(MedicError, match="did you mean 'official'"):
        medic.clone(teacher(), samples(), preset="oficial")


def test_data_may_be_a_loader_or_a_torch_data_set_and_the_model_wrapped():
    x, y = samples()
    model = teacher()
    expected = medic.clone(model, (x, y), **QUICK).model
    assert same(medic.clone(model, TensorDataset(x, y), **QUICK).model, expected)
    assert same(medic.clone(model, DataLoader(TensorDataset(x, y), batch_size=5), **QUICK).model, expected)
    assert same(medic.clone(nn.DataParallel(model), (x, y), **QUICK).model, expected)


def test_augmentation_is_seen_by_both_networks():
    counted = []

    def augment(x, generator):
        counted.append(len(x))
        return x.flip(-1)

    model = teacher()
    medic.clone(model, samples(), augment=augment, **QUICK)
    assert counted == [8] * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_cloned_in_float32(dtype):
    model = teacher().to(dtype)
    made = medic.clone(model, samples(), **QUICK)
    # every 16-bit number is a float32 number: the same as cloning the widened network
    assert same(made.model, medic.clone(teacher().to(dtype).float(), samples(), **QUICK).model)
    assert any("16-bit" in w for w in made.report.warnings)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_pruned_network_is_cloned_with_a_factory():
    model = teacher()
    prune.random_unstructured(model[0], "weight", 0.5)
    model(samples()[0])  # from here on torch's own deep copy refuses it
    with pytest.raises(MedicError, match=r"0 \(Conv2d\) owns parameters and leaves weight_orig as it was.*factory="):
        medic.clone(model, samples(), **QUICK)
    assert torch.isfinite(medic.clone(model, samples(), factory=lambda: teacher(5), **QUICK).model[0].weight).all()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_no_network_is_said():
    for model, message in (
        (3, "the model is int; expected a torch.nn.Module"),
        (torch.jit.trace(teacher().eval(), samples()[0]), "TorchScript: load its weights"),
        (nn.Sequential(nn.LazyConv2d(4, 3)), "lazy layers that do not know their shapes"),
    ):
        with pytest.raises(MedicError, match=message):
            medic.clone(model, samples(), **QUICK)


def test_epochs_follow_the_number_of_samples_unless_given(monkeypatch):
    assert [default_epochs(n, 64) for n in (3000, 600, 50, 1_000_000)] == [45, 230, 2070, 10]
    assert default_epochs(3000, 128) == 90
    monkeypatch.setattr("layerscope.methods.medic.cloning.STEPS", 100)
    x, y = samples()
    steps = []
    for network in (baselines.Scratch(batch_size=4), baselines.Distill(batch_size=4)):
        seen = []
        network = replace(network, augment=lambda x, generator, seen=seen: seen.append(1) or x)
        network(tiny(), (x, y))
        steps.append(len(seen))
    assert steps == [round(100 / (len(x) // 4)) * (len(x) // 4)] * 2


def test_dropout_is_on_in_the_student_only():
    class Spy(nn.Dropout):
        def forward(self, x):
            modes.add(self.training)
            return super().forward(x)

    modes: set[bool] = set()
    model = teacher()
    model.insert(7, Spy(0.5))
    medic.clone(model, samples(), **QUICK)
    assert modes == {True, False}


def test_dead_channels_are_counted():
    model = teacher()
    with torch.no_grad():
        model[0].weight[1] = 0
    report = medic.clone(model, samples(), taps="conv+norm", **QUICK).report
    assert report.taps[0].dead_channels == 1


def broken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model[8].weight.fill_(float("nan"))
    return model


@pytest.mark.parametrize(("change", "said"), [
    ({"clone_weight": -1.0}, "negative"),
    ({"clone_weight": float("nan")}, "negative"),
    ({"sharpness": -1.0}, "negative"),
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"batch_size": 1}, "batch_size at least 2"),
    ({"impact_reduction": "sum"}, "impact_reduction"),
    ({"data": (torch.zeros(0, 1, 8, 8), torch.zeros(0).long())}, "no clean sample"),
    ({"data": (torch.zeros(1, 1, 8, 8), torch.zeros(1).long())}, "one clean sample"),
    ({"data": (samples()[0], samples()[1] + 1)}, "the model has 3 outputs"),
    ({"data": (samples()[0], samples()[1] - 1)}, "labels"),
    ({"data": (samples()[0], samples()[1].float())}, "int64"),
    ({"data": (samples()[0], samples()[1][:, None])}, "one class number a sample"),
    ({"model": broken(tiny())}, "not finite on 24 of 24"),
    ({"taps": ["nine"]}, "no module 'nine'"),
    ({"factory": lambda: tiny(classes=3, width=8)}, "another architecture"),
    ({"factory": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, "builds another network"),
    ({"lr": 1e30}, "diverged"),
])  # fmt: skip
def test_bad_inputs(change, said):
    given = {"model": tiny(), "data": samples(), **QUICK, **change}
    with pytest.raises(LayerscopeError, match=said):
        medic.clone(given.pop("model"), given.pop("data"), **given)


def test_factory_must_not_give_the_teacher():
    model = teacher()
    assert not same(medic.clone(model, samples(), factory=lambda: tiny(9), **QUICK).model, model)


def test_absent_class_is_a_warning():
    x, y = samples()
    report = medic.clone(teacher(), (x[y < 2], y[y < 2]), **QUICK).report
    assert any("no clean sample of classes 2" in w for w in report.warnings)
    assert report.samples_per_class[2] == 0


def test_a_backdoor_is_not_cloned():
    train, test = shapes(600, 0), shapes(300, 1)
    model = tiny(0)
    poisoned = attacks.Poisoned(train, attacks.BadNet(), target=0, rate=0.1)
    attacks.train_poisoned(model, poisoned, epochs=15, batch_size=32, lr=0.05, schedule="cosine", progress=False)
    before = medic.evaluate(model, test, attacks.BadNet(), 0)
    cloned = medic.clone(model, shapes(300, 2), epochs=30, batch_size=32, progress=False)
    after = medic.evaluate(cloned.model, test, attacks.BadNet(), 0)
    assert before.asr >= 0.95
    assert after.asr <= before.asr - 0.6
    assert after.acc >= before.acc - 0.05
