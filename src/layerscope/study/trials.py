"""The trial that studies of norms run: probe a network at initialization, then train it and see. Imports no torch."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerscope.errors import LayerscopeError
from layerscope.verdict.features import init_features, micro_features, short

if TYPE_CHECKING:
    from torch import Tensor

    from layerscope.data import Dataset
    from layerscope.probe.records import Level, Profile
    from layerscope.training.history import History

#: Real steps that the micro-train probe takes.
MICRO_STEPS = 20

#: Added to the seed for the micro-train probe, which must not see the batches that training begins with.
OTHER_ORDER = 1_000_003

#: Test samples that the trained network is evaluated on, in evaluation mode.
TEST_SAMPLES = 1000

#: Weight layers that one unit of a network's depth parameter adds to its main path, and that parameter.
_LAYERS_A_UNIT = {"resnet": (6, "blocks"), "convnext": (9, "blocks"), "vit": (4, "depth"), "mixer": (4, "depth")}


def probe_and_train(
    *,
    norm: str,
    net: str,
    depth: int | None = None,
    init: str = "as-built",
    data: str = "digits",
    batch_size: int = 32,
    lr: float = 0.1,
    steps: int = 200,
    seed: int = 0,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "constant",
    warmup: int = 0,
    probe_chunks: int = 2,
    level: Level = "standard",
) -> dict[str, Any]:
    """What the probe says of a network before training, and what training then does.

    Weights, the probed samples and the order of the data all come from ``seed``; the learning rate plays no part in the
    probe, so trials that differ in ``lr`` alone share their features exactly.

    Args:
        norm: the norm choice.
        net: the network, as :func:`layerscope.sources.build` takes it.
        depth: layers on the main path of a reference net, see :func:`net_of`, so that it can be an axis of its own.
        init: how weights are drawn, see :func:`layerscope.study.initial.reinitialize`.
        data: the data set; ``digits:size=16`` and the like choose the image size.
        batch_size: of training, and of the batches that are probed.
        lr: learning rate.
        steps: training steps.
        seed: of everything.
        optimizer: see :func:`layerscope.training.fit`, as are the four that follow.
        momentum: of ``sgd``.
        weight_decay: of all parameters.
        schedule: of the learning rate.
        warmup: steps of linear increase.
        probe_chunks: training batches that are probed; small ones are made up to 32 samples.
        level: of the probe.

    Returns:
        ``verdict`` and the probe's numbers (``axes``, ``init``, ``series`` along the depth, what kind of ``path`` that
        is); ``micro``: 20 real steps
        at this learning rate on a copy, in another order of the data than training sees, with the verdict that knows
        them (``micro.verdict``); ``outcome``: what training did, with the accuracy in evaluation mode on up to 1,000
        test samples; ``curve`` in twenty parts; ``parameters``, ``hardware``.
    """
    from layerscope import probe, sources, training, verdict
    from layerscope.study.initial import reinitialize

    samples = _dataset(data)
    net = net_of(net, depth)
    built = sources.build(net, norm, in_shape=samples.in_shape, classes=samples.classes, seed=seed)
    reinitialize(built.module, init, seed)
    chunks = max(probe_chunks, -(-32 // batch_size))
    x, y = _batch(samples, chunks * batch_size, seed)
    profile = probe.profile(built.module, (x, y), batch_size=batch_size, level=level, seed=seed, source=net, norm=norm)
    shape = training.curvature(built.module, (x[:batch_size], y[:batch_size]), seed=seed)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
    }
    micro = verdict.real_steps(
        built.module, samples, lr=lr, steps=MICRO_STEPS, seed=seed + OTHER_ORDER, **{**options, "warmup": 0}
    )
    before = verdict.judge(profile)
    after = verdict.judge(profile, micro=(micro,))
    history = training.fit(built.module, samples, steps=steps, lr=lr, seed=seed, progress=False, **options)
    test = None if history.diverged else training.evaluate(built.module, _dataset(data, "test", TEST_SAMPLES))
    return {
        "verdict": before.label,
        "axes": {axis.name: axis.value for axis in before.axes},
        "levels": {axis.name: axis.level for axis in before.axes},
        "init": {**init_features(profile), **asdict(shape)},
        "micro": {"verdict": after.label, **micro_features(micro)},
        "outcome": {**outcome(history, samples.classes), "test_accuracy": test.accuracy if test else None},
        "curve": curve(history),
        "series": series(profile),
        "path": path_facts(profile),
        "parameters": sum(p.numel() for p in built.module.parameters() if p.requires_grad),
        "hardware": hardware(),
    }


def train(
    *,
    norm: str,
    net: str,
    depth: int | None = None,
    data: str = "digits",
    batch_size: int = 128,
    lr: float = 0.1,
    steps: int = 300,
    seed: int = 0,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "constant",
    warmup: int = 0,
) -> dict[str, Any]:
    """What training does, and nothing else: for curves of larger networks, on a GPU where there is one.

    Arguments as in :func:`probe_and_train`.

    Returns:
        ``outcome``, ``curve`` and ``hardware``, as there.
    """
    import torch

    from layerscope import sources, training

    samples = _dataset(data)
    built = sources.build(net_of(net, depth), norm, in_shape=samples.in_shape, classes=samples.classes, seed=seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    history = training.fit(
        built.module.to(device),
        samples,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        seed=seed,
        progress=False,
    )
    where = torch.cuda.get_device_name() + f"; torch {torch.__version__}" if device == "cuda" else hardware()
    return {
        "outcome": outcome(history, samples.classes),
        "curve": curve(history),
        "seconds_training": history.seconds,
        "hardware": where,
    }


def look(
    *, norm: str, net: str, depth: int | None = None, data: str = "digits", batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """What the probe says of one batch, and nothing else; no training.

    Arguments as in :func:`probe_and_train`.

    Returns:
        ``init``, ``series`` and ``hardware``, as there.
    """
    from layerscope import probe, sources

    samples, net = _dataset(data), net_of(net, depth)
    built = sources.build(net, norm, in_shape=samples.in_shape, classes=samples.classes, seed=seed)
    batch = _batch(samples, batch_size, seed)
    profile = probe.profile(
        built.module, batch, batch_size=batch_size, seed=seed, source=net, norm=norm, batch_noise=False
    )
    return {"init": init_features(profile), "series": series(profile), "hardware": hardware()}


def net_of(net: str, depth: int | None) -> str:
    """The network's spec with a depth, counted in weight layers along its main path.

    Reference nets that are built of blocks get as many as come nearest: 6 layers for one more block in each of the
    three stages of ``resnet``, 9 for ``convnext``, 4 for one block of ``vit`` or ``mixer``.

    >>> net_of("plain:width=8", 10), net_of("resnet", 14), net_of("vit", 14), net_of("mlp", None)
    ('plain:width=8,depth=10', 'resnet:blocks=2', 'vit:depth=4', 'mlp')
    """
    if depth is None:
        return net
    layers, word = _LAYERS_A_UNIT.get(net.split(":")[0], (1, "depth"))
    return f"{net}{',' if ':' in net else ':'}{word}={max(1, round(depth / layers))}"


def series(profile: Profile) -> dict[str, list[float | None]]:
    """Second moment, cosine, stable rank and scale-free gradient along the main path, to three digits."""
    from layerscope.verdict.trunk import trunk

    path = trunk(profile)
    return {
        "ms": [short(r.ms) for r in path.forward],
        "cosine": [short(r.cosine) for r in path.forward],
        "rank": [short(r.stable_rank) for r in path.forward],
        "grad": [short(r.grad_scaled) for r in path.backward],
    }


def path_facts(profile: Profile) -> dict[str, Any]:
    """What the rules want to know of the main path besides its numbers."""
    from layerscope.verdict.axes import inactive_branches
    from layerscope.verdict.trunk import trunk

    path = trunk(profile)
    return {
        "kind": path.kind,
        "tokens": path.tokens,
        "stream_blocks": path.stream_blocks,
        "inactive": inactive_branches(path),
        "token_cosines": [short(r.cosine_token) for r in path.forward],
    }


def outcome(history: History, classes: int) -> dict[str, float | bool | None]:
    """What training did; ``fails`` means that it diverged or did not get clear of chance.

    Chance is 1 / classes; clear of it is a mean training accuracy of 1.5 times chance over the whole run.
    """
    mean, late = history.mean_accuracy, history.accuracies[-max(1, history.planned // 4) :]
    return {
        "mean_accuracy": mean,
        "late_accuracy": 0.0 if history.diverged else sum(late) / len(late) if late else None,
        "final_loss": history.final_loss,
        "diverged": history.diverged,
        "diverged_at": history.diverged_at,
        "fails": bool(history.diverged or mean is None or mean < 1.5 / classes),
    }


def curve(history: History, parts: int = 20) -> dict[str, list[float | None]]:
    """Loss and accuracy over training, as means over ``parts`` equal stretches; shorter where training stopped."""
    width = max(1, -(-history.planned // parts))
    return {
        name: [short(sum(v[i : i + width]) / len(v[i : i + width])) for i in range(0, len(v), width)]
        for name, v in (("loss", history.losses), ("accuracy", history.accuracies))
    }


@cache
def hardware() -> str:
    """Processor and torch version: what the last digits of a result depend on."""
    import torch

    model = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}; torch {torch.__version__}"


@lru_cache(maxsize=4)
def _dataset(name: str, split: str = "train", most: int | None = None) -> Dataset:
    from layerscope import data as datasets

    found = datasets.load(name, split)
    return found if most is None else replace(found, x=found.x[:most], y=found.y[:most])


def _batch(samples: Dataset, size: int, seed: int) -> tuple[Tensor, Tensor]:
    from layerscope import data as datasets

    return datasets.batch(samples, size, seed=seed)


def _check(values: Mapping[str, Sequence[Any]]) -> None:
    """Every norm, network and data set of a study exists, before the first trial runs."""
    from layerscope import data as datasets
    from layerscope import nets, norms
    from layerscope.study import initial

    for name in values.get("norm", ()):
        norms.parse(name)
    for name in values.get("init", ()):
        initial.check(name)
    for name in values.get("net", ()):
        if ":" not in name or name.split(":")[0] in nets.names():
            for depth in values.get("depth", (None,)):
                nets.parse(net_of(name, depth))
    for name in values.get("data", ()):
        datasets.load(name)
    for name in ("batch_size", "steps"):
        for value in values.get(name, ()):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LayerscopeError(f"{name} must be a whole number of at least 1, got {value!r}")


probe_and_train.check = train.check = look.check = _check  # type: ignore[attr-defined]  # layerscope.study.runner.check looks here
