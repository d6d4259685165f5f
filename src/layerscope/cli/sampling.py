"""``layerscope sampling convert|predict|calibrate|export``: stochastic units in place of norm and activation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from torch import nn

    from layerscope.data import Dataset

Network = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
Weights = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]


def convert(
    network: Network,
    save: Path,
    checkpoint: Path | None = None,
    data: str = "digits",
    epochs: int = 0,
    batch_size: int = 100,
    lr: float = 1e-3,
    noise: str = "bernoulli:p=0.5",
    inputs: Literal["binarize", "exact"] = "exact",
    target: float = 1.5,
    any_activation: bool = False,
    samples: int = 20,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Put sampling units in place of every layer with norm and activation, and optionally train what came out.

    Args:
        network: A reference net, or file.py:factory or package.module:factory that builds the ordinary network.
        save: Write the sampling network here, for the other commands.
        checkpoint: Weights of the ordinary network to start from, a state dict as .pt or .safetensors.
        data: Data set (see `layerscope data`); magnitudes are set from its training images.
        epochs: Passes over the training images afterwards; a threshold is not a ReLU, so expect to need some.
        batch_size: Images of one step.
        lr: Of AdamW, cosine.
        noise: Of a synapse: bernoulli:p=0.5 or gaussian:std=1.
        inputs: Binarize the images at 0, or let the first layer take real pixels.
        target: Spread of the argument of erf after initialization.
        any_activation: Also convert layers before GELU, LeakyReLU and the like.
        samples: Passes of the evaluation.
        seed: Of weights, order and noise.
        device: Where to compute, such as cuda.
    """
    from layerscope import training
    from layerscope.methods import sampling

    train, test = _data(data, "train", None), _data(data, "test", None)
    model = _built(network, train, seed)
    if checkpoint is not None:
        from layerscope.cli.checkpoints import load_into

        load_into(model, checkpoint, network)
    converted = sampling.convert(
        model.to(device), train.x[:500].to(device), noise=noise, inputs=inputs, target=target, seed=seed,
        any_activation=any_activation,
    )  # fmt: skip
    print(converted)
    net = converted.model
    if epochs:
        with sampling.centred(net):
            training.fit(
                net, train, epochs=epochs, batch_size=batch_size, optimizer="adamw", lr=lr, schedule="cosine",
                seed=seed, device=device,
            )  # fmt: skip
    print(sampling.evaluate(net, test.x.to(device), test.y.to(device), samples, seed=seed))
    print(f"sampling network: {sampling.save_model(net.cpu(), save)}")


def predict(
    network: Network,
    weights: Weights,
    data: str = "digits",
    samples: int = 100,
    confidence: float | None = None,
    limit: int | None = None,
    other: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Predict a test split with many passes: accuracy, calibration, and uncertainty about what does not belong.

    Args:
        network: The ordinary network that was converted, or a factory of a network with sampling layers.
        weights: A file that `convert` wrote, or a state dict of a network with sampling layers.
        data: Data set; its test split is predicted.
        samples: Passes, or with a confidence the most an example gets.
        confidence: Stop each example when its class is settled with this confidence.
        limit: Only the first so many examples.
        other: Another data set, resized by its spec if need be, that the network should be unsure about.
        seed: Of the noise.
        device: Where to compute, such as cuda.
        json: Write the numbers here.
    """
    from layerscope.methods import sampling

    test = _data(data, "test", limit)
    net = _loaded(network, weights, test).to(device)
    x, y = test.x.to(device), test.y.to(device)
    strangers = {"turned by 90 degrees": sampling.rotate(x, 90)} if x.ndim == 4 else {}
    if other is not None:
        strangers[other] = _data(other, "test", limit).x.to(device)
    result = sampling.evaluate(net, x, y, samples, confidence=confidence, strangers=strangers, seed=seed)
    print(result)
    _numbers(result, json)


def calibrate(
    network: Network,
    weights: Weights,
    data: str = "digits",
    samples: int = 100,
    limit: int | None = None,
    bins: int = 15,
    seed: int = 0,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """How far a sampling network can be believed: the reliability diagram, and what more passes buy.

    Args:
        network: As for `predict`.
        weights: As for `predict`.
        data: Data set; its test split is used.
        samples: Most passes.
        limit: Only the first so many examples.
        bins: Equal bins of confidence.
        seed: Of the noise.
        device: Where to compute, such as cuda.
        json: Write the numbers of the last line here.
    """
    from layerscope.methods import sampling

    test = _data(data, "test", limit)
    net = _loaded(network, weights, test).to(device)
    x, y = test.x.to(device), test.y.to(device)
    result = None
    for passes in [s for s in (1, 3, 10, 30) if s < samples] + [samples]:
        result = sampling.evaluate(net, x, y, passes, bins=bins, seed=seed)
        print(f"{passes:>4} passes: accuracy {result.accuracy:.2%}, ECE {result.ece:.2%}, NLL {result.nll:.3f}")
    assert result is not None
    print(f"\nwith {samples} passes, by confidence:")
    diagram = result.reliability
    for confidence, accuracy, count in zip(diagram.confidence, diagram.accuracy, diagram.count, strict=True):
        print(f"  confidence {confidence:.3f}  accuracy {accuracy:.3f}  examples {count}")
    for report in sampling.observe(net, x[:200], seed=seed):
        print(
            f"{report.path}: spread of P {report.p_std:.2f}, saturated {report.saturated_share:.0%}, "
            f"signal {report.signal_share:.0%} of the variance of z"
        )
    _numbers(result, json)


def export(
    network: Network,
    weights: Weights,
    save: Path,
    bits: int = 8,
    noise: str | None = None,
    data: str | None = None,
    limit: int | None = 1000,
    samples: int = 20,
) -> None:
    """Write what a device needs: offsets, biases and fixed-point weights of every synapse array, as one .npz.

    Args:
        network: As for `predict`.
        weights: As for `predict`.
        save: Where to, as .npz.
        bits: Of a weight, 2 to 16.
        noise: The device's noise; the offsets follow from it. Left out, each layer's own.
        data: Data set; with it, the accuracy that 2 to 8 bits keep is shown.
        limit: Only the first so many examples of its test split.
        samples: Passes of each evaluation.
    """
    from layerscope.methods import sampling

    test = _data(data or "digits", "test", limit)
    net = _loaded(network, weights, test)
    arrays = sampling.export(net, bits, noise)
    for a in arrays:
        shape = " x ".join(map(str, a.weights.shape))
        print(
            f"{a.path}: {shape} weights of {a.bits} bits, smallest cosine {a.cosine:.4f}; {a.noise}, offsets "
            f"{float(a.offsets.min()):.3g} to {float(a.offsets.max()):.3g}, n p (1 - p) at least {a.normality:.3g}"
        )
    if data is not None:
        for b, accuracy in sampling.accuracy_by_bits(net, test.x, test.y, samples=samples).items():
            print(f"{b} bits: accuracy {accuracy:.2%}")
    print(f"synapse arrays: {sampling.save(arrays, save)}")


def _data(name: str, split: Literal["train", "test"], limit: int | None) -> Dataset:
    from layerscope import data
    from layerscope.errors import DataError

    found = data.load(name, split=split)
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: give at least 1 example")
    return found if limit is None else found.take(slice(limit))


def _built(network: str, data: Dataset, seed: int) -> nn.Module:
    from layerscope import sources

    return sources.build(network, in_shape=data.in_shape, classes=data.classes, seed=seed).module


def _loaded(network: str, weights: Path, data: Dataset) -> nn.Module:
    from layerscope.cli.checkpoints import load_into
    from layerscope.methods import sampling

    model = _built(network, data, 0)
    if sampling.is_saved_model(weights):
        return sampling.load_model(model, weights)
    sampling.sampling_layers(model)
    load_into(model, weights, network)
    return model


def _numbers(result: object, path: Path | None) -> None:
    import json

    from layerscope.plain import to_plain

    if path is not None:
        path.write_text(json.dumps(to_plain(result), indent=1) + "\n")
        print(f"numbers: {path}")


COMMANDS = {"convert": convert, "predict": predict, "calibrate": calibrate, "export": export}
