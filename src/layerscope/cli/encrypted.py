"""``layerscope encrypted``: what encrypted inference costs, and a small client and server over loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

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


def keygen(client: Path, key: Path, *, overwrite: bool = False) -> None:
    """Draw the keys of a client: the secret to KEY (mode 0600), the public one to KEY.evaluation.

    Args:
        client: Client file, as CompiledNet.client().save() writes it.
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
        server: Server file, as CompiledNet.server().save() writes it. It may hold machine code: serve only your own.
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


COMMANDS = {"cost": cost, "serve": serve, "keygen": keygen, "query": query}
