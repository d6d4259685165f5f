"""The trial that studies of norms run: probe a network at initialization, then train it and see. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerscope.errors import LayerscopeError

if TYPE_CHECKING:
    from layerscope.probe.records import Level, Profile
    from layerscope.training.history import History

#: Steps after which the training so far is read as a feature: what a short trial run would tell.
MICRO_STEPS = 20


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
        depth: the ``depth`` of a reference net that has one, so that it can be an axis of its own.
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
        ``verdict`` and the probe's numbers under ``init``, the first steps' under ``micro``, what training did under
        ``outcome``; ``parameters`` and the losses of all steps. Mind that the first steps are a part of the training
        whose mean accuracy is the outcome: the fewer steps, the more a score from ``micro`` foresees itself.
    """
    from layerscope import data as datasets
    from layerscope import probe, sources, training, verdict
    from layerscope.study.initial import reinitialize

    train = datasets.load(data)
    net = net_of(net, depth)
    built = sources.build(net, norm, in_shape=train.in_shape, classes=train.classes, seed=seed)
    reinitialize(built.module, init, seed)
    chunks = max(probe_chunks, -(-32 // batch_size))
    batch = datasets.batch(train, chunks * batch_size, seed=seed)
    profile = probe.profile(built.module, batch, batch_size=batch_size, level=level, seed=seed, source=net, norm=norm)
    judged = verdict.judge(profile)
    history = training.fit(
        built.module,
        train,
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
    return {
        "verdict": judged.label,
        "axes": {axis.name: axis.value for axis in judged.axes},
        "init": init_features(profile),
        "micro": micro_features(history),
        "outcome": outcome(history, train.classes),
        "parameters": sum(p.numel() for p in built.module.parameters() if p.requires_grad),
        "losses": [round(loss, 5) for loss in history.losses],
    }


def net_of(net: str, depth: int | None) -> str:
    """The network's spec with a depth.

    >>> net_of("plain:width=8", 10), net_of("mlp", 4), net_of("mlp", None)
    ('plain:width=8,depth=10', 'mlp:depth=4', 'mlp')
    """
    return net if depth is None else f"{net}{',' if ':' in net else ':'}depth={depth}"


def init_features(profile: Profile) -> dict[str, float | None]:
    """The probe's numbers that a score may use, at the last layer and along the depth."""
    maps = [r for r in profile.of("activation", "block") if r.cosine is not None]
    grads = [r.grad_scaled for r in profile.of("conv", "linear") if r.grad_scaled]
    raw = [r.grad_norm for r in profile.of("conv", "linear") if r.grad_norm]
    ms = [r.ms for r in maps if r.ms is not None]
    return {
        "loss": profile.loss,
        "cosine": profile.readout_cosine_unpooled,
        "cosine_pooled": profile.readout_cosine,
        "effective_rank": profile.readout_effective_rank,
        "spread": profile.readout_spread,
        "batch_noise": profile.batch_noise,
        "ms_last": ms[-1] if ms else None,
        "ms_max": max(ms) if ms else None,
        "grad_ratio": grads[0] / grads[-1] if len(grads) > 1 else None,
        "grad_rate": (grads[0] / grads[-1]) ** (1.0 / (len(grads) - 1)) if len(grads) > 1 else None,
        "grad_ratio_raw": raw[0] / raw[-1] if len(raw) > 1 else None,
        "nonfinite": max((r.nonfinite_share for r in profile.records), default=0.0),
    }


def micro_features(history: History) -> dict[str, float | None]:
    """What the first steps say: loss and accuracy at their end, and how far the loss fell."""
    losses, accuracies = history.losses[:MICRO_STEPS], history.accuracies[:MICRO_STEPS]
    tail = losses[-5:]
    end = sum(tail) / len(tail) if tail else None
    return {
        "loss": end,
        "drop": losses[0] - end if end is not None else None,
        "worst": max(losses, default=None),
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "diverged": float(history.diverged_at is not None and history.diverged_at < MICRO_STEPS),
    }


def outcome(history: History, classes: int) -> dict[str, float | bool | None]:
    """What training did; ``fails`` means that it diverged or did not get clear of chance.

    Chance is 1 / classes; clear of it is a mean training accuracy of 1.5 times chance over the whole run.
    """
    mean = history.mean_accuracy
    return {
        "mean_accuracy": mean,
        "final_loss": history.final_loss,
        "diverged": history.diverged,
        "diverged_at": history.diverged_at,
        "fails": bool(history.diverged or mean is None or mean < 1.5 / classes),
    }


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


probe_and_train.check = _check  # type: ignore[attr-defined]  # looked up by layerscope.study.runner.check
