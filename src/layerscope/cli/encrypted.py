"""``layerscope encrypted``: what encrypted inference costs, the files of a client and a server, and their verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from layerscope._show import writable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layerscope.data import Dataset
    from layerscope.methods.encrypted.costs.records import Advice

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]


def cost(
    source: Source,
    *,
    in_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    bits: int = 4,
    act_bits: int = 4,
    lookup_bits: int = 6,
    gate: Literal["tfhe-2017", "paper-full", "paper-leveled"] = "tfhe-2017",
    probe: bool = False,
    advice: bool = False,
    html: Path | None = None,
    json: Path | None = None,
) -> None:
    """What encrypted inference of a network will cost, layer by layer, before any key exists.

    Args:
        source: timm:resnet18, torchvision:resnet18, file.py:factory, pkg.mod:factory, or a reference net.
        in_shape: Channels, height and width of one sample.
        classes: Outputs of a network that is built here.
        bits: Width of a weight code, 2 to 5.
        act_bits: Width of an activation code.
        lookup_bits: Bits that may reach a lookup.
        gate: Where the seconds of a gate come from.
        probe: Measure the lookups of the installed engine first (minutes).
        advice: List cheaper widths too; prices every combination, so it takes longer.
        html: Write one self-contained page here.
        json: Write every number here.
    """
    from dataclasses import replace

    from layerscope import report, sources
    from layerscope.methods import encrypted as she

    built = sources.build(source, None, in_shape=in_shape, classes=classes, seed=0)
    model = built.module.eval()
    lookup = she.probe_concrete() if probe else "concrete-2.11"
    result = she.cost(
        model,
        in_shape,
        bits=bits,
        act_bits=act_bits,
        lookup_bits=lookup_bits,
        gate=gate,
        lookup=lookup,
        label=built.label,
    )
    if advice and not result.unpriced:
        prices = she.advise(model, in_shape, base=(bits, act_bits, lookup_bits))
        result = replace(result, advice=prices.rows)
    report.print_result(result)
    if html:
        print(f"page: {result.to_html(html)}")
    if json:
        print(f"numbers: {result.to_json(json)}")


def advise(
    source: Source,
    *,
    data: str = "digits",
    checkpoint: Path | None = None,
    most_loss: float = 0.02,
    samples: int | None = None,
    calib: int = 500,
    epochs: int = 2,
    rounds: int = 2,
    base: tuple[int, int, int] = (4, 4, 6),
    bits: tuple[int, ...] = (2, 3, 4),
    act_bits: tuple[int, ...] = (2, 3, 4),
    lookup_bits: tuple[int, ...] = (5, 6),
    channels: tuple[float, ...] = (1.0, 0.75, 0.5),
    tries: int = 16,
    seed: int = 0,
    html: Path | None = None,
    json: Path | None = None,
) -> None:
    """The bits, shifts and channels that need the fewest bootstraps and cost at most so much accuracy.

    Four fifths of the data calibrate and train the candidates, the rest is held back: one half of it to choose on, the
    other to judge the choice.

    Args:
        source: As for `cost`; what is looked for is a trained network.
        data: Data set (see `layerscope data`), or file.py:function returning (x, y).
        checkpoint: Its weights, a state dict as .pt or .safetensors; left out, the factory's own.
        most_loss: Accuracy that may be lost against the float network.
        samples: Use only so many of the data, drawn with the seed.
        calib: Of these, how many set the scales.
        epochs: Passes over the data in each round of training with the quantiser in the loop; 0 trains nothing.
        rounds: Rounds of that training for each candidate.
        base: Weight, activation and lookup bits of the settings to beat.
        bits: Widths of a weight code to try.
        act_bits: Widths of an activation code to try.
        lookup_bits: Bits that may reach a lookup to try.
        channels: Shares of the activations' lookups to keep.
        tries: Candidates to measure at most.
        seed: Of the draw and of the training.
        html: Write one self-contained page here.
        json: Write every number here.
    """
    from dataclasses import replace

    from layerscope import report
    from layerscope.methods import encrypted as she

    for path in (html, json):
        if path is not None:
            writable(path)
    parts = _parts(data, samples, calib, seed)
    model = _network(source, checkpoint, parts, seed)
    found = she.advise(
        model, parts.fit.in_shape, calib=parts.calib, valid=(parts.held.x, parts.held.y),
        train=(parts.fit.x, parts.fit.y) if epochs else None, most_loss=most_loss, base=base, bits=bits,
        act_bits=act_bits, lookup_bits=lookup_bits, channels=channels, epochs=epochs, rounds=rounds, tries=tries,
        seed=seed, watch=_tell,
    )  # fmt: skip
    found = replace(found, source=source)
    report.print_result(found)
    if html:
        print(f"page: {found.to_html(html)}")
    if json:
        print(f"numbers: {found.to_json(json)}")


def compile(
    source: Source,
    out: Path,
    *,
    data: str = "digits",
    checkpoint: Path | None = None,
    samples: int | None = None,
    calib: int = 500,
    bits: int = 3,
    act_bits: int = 3,
    input_bits: int | None = None,
    lookup_bits: int = 6,
    channels: float = 1.0,
    epochs: int = 0,
    rounds: int = 3,
    backend: Literal["auto", "concrete", "plain", "circuit"] = "auto",
    selftest: bool = True,
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Make the two files of a deployment: OUT.client for who has the images, OUT.server for who computes.

    The client file holds shapes and scales, the server file the integer network; neither holds a key. Accuracy is
    measured on data that nothing was fitted on. Then: `keygen`, `serve`, `query`.

    Args:
        source: As for `cost`; a trained network in which every operation has an integer form.
        out: Where to, without ending.
        data: Data set (see `layerscope data`), or file.py:function returning (x, y), for scales and training.
        checkpoint: The network's weights, a state dict as .pt or .safetensors; left out, the factory's own.
        samples: Use only so many of the data, drawn with the seed.
        calib: Of these, how many set the scales.
        bits: Width of a weight code, 2 to 5.
        act_bits: Width of an activation code.
        input_bits: Width of an input code; left out, as an activation.
        lookup_bits: Bits that may reach a lookup.
        channels: Share of the activations' lookups to keep; below 1 the least useful channels go, so train.
        epochs: Passes over the data in each round of training with the quantiser in the loop; 0 trains nothing.
        rounds: Rounds of that training.
        backend: concrete encrypts (auto means it); plain and circuit rehearse in the clear.
        selftest: Encrypt, run and decrypt extremal and random inputs right away; minutes for concrete.
        overwrite: Replace files that stand there.
        seed: Of the draw and of the training.
    """
    from layerscope.methods import encrypted as she
    from layerscope.methods.encrypted.backends.registry import engine

    engine(backend).version()  # a missing engine is said now, not after the training
    out = out / "net" if out.is_dir() else out
    client, server = (writable(out.with_name(out.name + end)) for end in (".client", ".server"))
    standing = [str(path) for path in (client, server) if path.exists()]
    if standing and not overwrite:
        raise she.InputError(f"{' and '.join(standing)} stand there already; add --overwrite, or choose another OUT")
    parts = _parts(data, samples, calib, seed)
    model = _network(source, checkpoint, parts, seed)
    choose, judge = parts.held.take(slice(0, None, 2)), parts.held.take(slice(1, None, 2))
    net = she.quantize(
        she.narrow(model, parts.calib, channels), parts.calib, bits=bits, act_bits=act_bits, input_bits=input_bits,
        lookup_bits=lookup_bits,
    )  # fmt: skip
    if epochs:
        net = she.finetune(
            net, (parts.fit.x, parts.fit.y), parts.calib, valid=(choose.x, choose.y), epochs=epochs, rounds=rounds,
            seed=seed,
        )  # fmt: skip
    print(f"network:  {net}")
    print(
        f"accuracy: {_share(model(judge.x), judge.y)} as floats, {_share(_logits(net, judge.x), judge.y)} as integers"
    )
    compiled = she.compile(net, backend)
    print(
        f"compiled: {compiled.facts.bootstraps} bootstraps a sample, {compiled.engine.name} {compiled.engine.version()}"
    )
    if selftest:
        print(f"selftest: {compiled.selftest()}")
    print(f"client:   {compiled.client().save(client)}  (for who has the images)")
    print(f"server:   {compiled.server().save(server)}  (for who computes; holds the weights, no key)")
    print(f"next:     layerscope encrypted keygen --client {client} --key {out.with_name(out.name + '.key')}")


@dataclass(frozen=True)
class _Parts:
    """A data set, shuffled and cut."""

    fit: Dataset
    """Four fifths: calibration and training."""
    held: Dataset
    calib: Tensor
    classes: int


def _parts(text: str, samples: int | None, calib: int, seed: int) -> _Parts:
    import torch

    from layerscope import data, sources
    from layerscope.errors import DataError

    whole = data.as_dataset(sources.data_from(text))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:samples]
    if len(order) < 50 or calib < 1:
        raise DataError(f"{len(order)} samples and calib={calib}: expected at least 50 samples and 1 to calibrate with")
    cut = len(order) * 4 // 5
    fit = whole.take(order[:cut])
    return _Parts(fit, whole.take(order[cut:]), fit.x[:calib], whole.classes)


def _network(source: str, checkpoint: Path | None, parts: _Parts, seed: int) -> nn.Module:
    from layerscope import sources
    from layerscope.cli.checkpoints import load_into

    built = sources.build(source, None, in_shape=parts.fit.in_shape, classes=parts.classes, seed=seed)
    if checkpoint is not None:
        load_into(built.module, checkpoint, source)
    return built.module.eval().requires_grad_(False)


def _logits(net: object, x: Tensor) -> Tensor:
    from layerscope.methods.encrypted import QuantizedNet

    assert isinstance(net, QuantizedNet)
    return net.decode(net.integers(net.encode(x, clip=True)))


def _share(logits: Tensor, y: Tensor) -> str:
    return f"{float((logits.argmax(1) == y).float().mean()):.3f} of {len(y)}"


def _tell(row: Advice) -> None:
    import sys

    lost = 0.0 if row.lost is None else row.lost
    text = f"{row.change}: {row.bootstraps} bootstraps, {100 * lost:.1f} points lost: {row.verdict}"
    print(text, file=sys.stderr, flush=True)


def keygen(client: Path, key: Path, *, overwrite: bool = False) -> None:
    """Draw the keys of a client: the secret to KEY (mode 0600), the public one to KEY.evaluation.

    Args:
        client: Client file, as `compile` writes it (in Python: CompiledNet.client().save()).
        key: Where the secret goes.
        overwrite: Replace a key that stands there; what it encrypted can then never be read.
    """
    from layerscope.methods import encrypted as she

    holder = she.Client.load(client)
    holder.keygen(key, overwrite=overwrite)
    print(f"secret key: {key} (keep it here)\npublic key: {key}.evaluation (send it to the server)")


def serve(server: Path, *, host: str = "127.0.0.1", port: int = 8765) -> None:
    """Answer encrypted requests; this process never sees a secret key.

    Args:
        server: Server file, as `compile` writes it. It may hold machine code: serve only your own.
        host: Address to listen on; there is no transport security, so loopback unless you add it.
        port: Port; 0 picks a free one.
    """
    from layerscope.methods import encrypted as she

    loaded = she.Server.load(server)
    service = she.Service(loaded, host, port)
    print(f"serving {loaded} on http://{host}:{service.port}", flush=True)
    try:
        service.serve_forever()
    finally:
        service.server_close()


def query(
    client: Path,
    key: Path,
    images: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    clip: bool = False,
    send_keys: bool = True,
) -> None:
    """Encrypt a batch of images, ask a server, decrypt and print the classes.

    Args:
        client: Client file.
        key: Secret key file that ``keygen`` wrote.
        images: A .npy array of floats, shape (N, C, H, W).
        host: Address of the server.
        port: Its port.
        clip: Saturate values outside the range of the network instead of refusing them.
        send_keys: Upload the public key first; once is enough.
    """
    import numpy as np

    from layerscope.methods import encrypted as she

    try:
        x = np.load(images, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise she.InputError(f"{images} holds no array of floats: {error}") from error
    holder = she.Client.load(client)
    holder.load_keys(key)
    if send_keys:
        she.post(host, port, "/keys", holder.evaluation_keys())
    request = holder.encrypt(x, clip=clip, canary=True)
    logits = holder.decrypt(she.post(host, port, "/run", request), request=request)
    if clip and holder.clipped:
        print(f"{holder.clipped} values were saturated")
    for i, row in enumerate(logits):
        print(f"{i}: class {int(row.argmax())}  logits {' '.join(f'{v:.3g}' for v in row.tolist())}")


COMMANDS = {"cost": cost, "advise": advise, "compile": compile, "serve": serve, "keygen": keygen, "query": query}
