"""Schedules, evaluation, augmentation and sinks, each against something simpler."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layerscope import training
from layerscope.data import Dataset
from layerscope.errors import SpecError, TrainingError
from layerscope.training.augment import crop, flip, flip_crop
from layerscope.training.schedules import schedule
from layerscope.training.seeds import derive

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3

# schedules


def torchs(make, total: int) -> list[float]:
    """The factors of a scheduler of torch's own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(total):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("total", [4, 5, 40])
def test_schedules_agree_with_torchs(total: int) -> None:
    s = torch.optim.lr_scheduler
    pairs = {
        "cosine": lambda o: s.CosineAnnealingLR(o, total),
        "cosine:final=0.1": lambda o: s.CosineAnnealingLR(o, total, eta_min=0.1),
        "onecycle": lambda o: s.OneCycleLR(o, 1.0, total_steps=total, cycle_momentum=False),
        "onecycle:peak=0.5,div=10,end=100": lambda o: s.OneCycleLR(
            o, 1.0, total_steps=total, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
        "constant": lambda o: s.LambdaLR(o, lambda step: 1.0),
        "step": lambda o: s.MultiStepLR(o, [math.ceil(total / 2), math.ceil(3 * total / 4)]),
    }
    for spec, make in pairs.items():
        ours = [schedule(spec)(step, total) for step in range(total)]
        assert ours == pytest.approx(torchs(make, total), abs=1e-9), spec


def test_warmup_rises_linearly_and_the_schedule_gets_the_rest() -> None:
    warmed, plain = schedule("cosine", warmup=4), schedule("cosine")
    assert [warmed(step, 14) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [warmed(step, 14) for step in range(4, 14)] == [plain(step, 10) for step in range(10)]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["constant", "step", "cosine", "onecycle"]), st.integers(1, 300), st.integers(0, 50))
def test_every_factor_is_between_0_and_1(name: str, total: int, warmup: int) -> None:
    factor = schedule(name, warmup=min(warmup, total - 1))
    assert all(0 <= factor(step, total) <= 1 + 1e-12 for step in range(total))


@pytest.mark.parametrize(
    ("spec", "says"),
    [("cosine:fin=0", "final"), ("constant:x=1", "takes none"), ("step:at=soon", "not a number"), ("zigzag", "known")],
)
def test_schedules_that_are_none(spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        schedule(spec)


# evaluation


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))


@pytest.mark.parametrize("batch_size", [1, 7, 50, 400])
def test_evaluation_is_over_samples_whatever_the_batches(batch_size: int) -> None:
    net = network()
    flags = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before = torch.random.get_rng_state()
    result = training.evaluate(net, (X, Y), batch_size=batch_size)
    outputs = training.predict(net, X, batch_size=batch_size)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    net.eval()
    torch.testing.assert_close(outputs, net(X).detach())
    assert result.loss == pytest.approx(F.cross_entropy(net(X), Y).item(), rel=1e-5)
    assert result.accuracy == pytest.approx((net(X).argmax(1) == Y).double().mean().item())
    assert result.samples == 50


def test_evaluation_of_tokens_regression_and_batches() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table(x).transpose(1, 2)

    tokens = torch.randint(4, (10, 5), generator=torch.Generator().manual_seed(0))
    net = Tokens()
    expected = (net(tokens).argmax(1) == tokens).double().mean().item()
    assert training.evaluate(net, [(tokens, tokens)]).accuracy == pytest.approx(expected)
    line = nn.Linear(6, 1)
    result = training.evaluate(line, [(X, X[:, :1])], loss="mse")
    assert result.accuracy is None
    assert result.loss == pytest.approx(F.mse_loss(line(X), X[:, :1]).item())
    assert training.evaluate(network(), Dataset("d", X, Y, 3)) == training.evaluate(network(), (X, Y))


def test_evaluation_on_a_named_set_uses_its_test_split() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert training.evaluate(net, "digits").samples == 360


def test_evaluation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(TrainingError, match="no batch"):
        training.evaluate(network(), [])
    with pytest.raises(TrainingError, match="int is nothing"):
        training.evaluate(network(), 5)


# augmentation

IMAGES = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8).repeat(20, 1, 1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_some_images_whole() -> None:
    out = flip(IMAGES, generator())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(out, IMAGES, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, IMAGES, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 8 <= sum(mirrored) <= 32


def test_crop_is_a_shift_by_up_to_an_eighth_with_the_border_repeated() -> None:
    out = crop(IMAGES, generator())
    framed = F.pad(IMAGES, (1, 1, 1, 1), mode="replicate")
    windows = [(dy, dx) for dy in range(3) for dx in range(3)]
    found = set()
    for image, frame in zip(out, framed, strict=True):
        fits = [(dy, dx) for dy, dx in windows if torch.equal(image, frame[:, dy : dy + 8, dx : dx + 8])]
        assert len(fits) == 1
        found.update(fits)
    assert len(found) >= 7


def test_augmentation_is_drawn_from_its_generator() -> None:
    assert torch.equal(flip_crop(IMAGES, generator(1)), flip_crop(IMAGES, generator(1)))
    assert not torch.equal(flip_crop(IMAGES, generator(1)), flip_crop(IMAGES, generator(2)))


def test_seeds_differ_in_every_word() -> None:
    seeds = {derive(seed, word, n) for seed in range(3) for word in ("order", "step") for n in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


# sinks


def test_json_lines_append_and_hold_nan(tmp_path: Path) -> None:
    path = tmp_path / "log" / "run.jsonl"
    for loss in (0.5, math.nan):
        sink = training.JsonlSink(path)
        sink.log({"loss": loss}, 3)
        sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "loss": 0.5},
        {"step": 3, "loss": "nan"},
    ]


class Fake(types.ModuleType):
    """Stands for a tracker: keeps every call that is made to it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.run = None

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> object:
            self.calls.append((name, args, kwargs))
            return None if name == "active_run" else self

        return call


@pytest.mark.parametrize(
    ("module", "make", "calls"),
    [
        (
            "wandb",
            lambda: training.WandbSink(project="p"),
            [("init", (), {"project": "p"}), ("log", ({"loss": 0.5},), {"step": 3}), ("finish", (), {})],
        ),
        (
            "mlflow",
            lambda: training.MlflowSink("r"),
            [
                ("active_run", (), {}),
                ("start_run", (), {"run_name": "r"}),
                ("log_metrics", ({"loss": 0.5},), {"step": 3}),
                ("end_run", (), {}),
            ],
        ),
        (
            "trackio",
            lambda: training.TrackioSink("p"),
            [("init", (), {"project": "p"}), ("log", ({"loss": 0.5},), {"step": 3}), ("finish", (), {})],
        ),
    ],
)
def test_tracker_adapters_make_these_calls(monkeypatch: pytest.MonkeyPatch, module: str, make, calls) -> None:
    fake = Fake(module)
    monkeypatch.setitem(sys.modules, module, fake)
    sink = make()
    assert isinstance(sink, training.Sink)
    sink.log({"loss": 0.5}, 3)
    sink.close()
    assert fake.calls == calls


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("wandb", training.WandbSink),
        ("mlflow", training.MlflowSink),
        ("trackio", lambda: training.TrackioSink("p")),
        ("tensorboard", lambda: training.TensorBoardSink("folder")),
    ],
)
def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, make) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(TrainingError, match=f"pip install {module}"):
        make()
