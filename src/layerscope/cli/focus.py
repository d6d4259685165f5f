"""``layerscope focus profile|search|run``: compute only the positions that may matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
Focused = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOCUSED")]
Images = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]


def profile(
    network: Network, size: tuple[int, int, int] = (3, 224, 224), threads: int = 1, html: Path | None = None
) -> None:
    """Where a network can be cut, and below which active share that beats the best dense engine here.

    Args:
        network: file.py:function or package.module:function that returns the pretrained network, or timm:NAME,
            torchvision:NAME (random weights unless pretrained=true is given).
        size: channels, height and width of an input image.
        threads: CPU threads.
        html: also write the report to this page.
    """
    import torch

    from layerscope.methods import focus

    torch.set_num_threads(threads)
    _deliver(focus.profile(_network(network, size), torch.randn(1, *size), source=network), html)


def search(
    network: Network,
    images: Images,
    max_accuracy_drop: float = 0.5,
    metric: Literal["auto", "accuracy", "agreement"] = "auto",
    cut: str = "auto",
    threads: int = 1,
    seed: int = 0,
    save: Path | None = None,
    html: Path | None = None,
    json: Path | None = None,
) -> None:
    """Find the configuration that saves most within an accuracy budget, or say that the dense network is best.

    Args:
        network: file.py:function or package.module:function that returns the pretrained network, or timm:NAME,
            torchvision:NAME (random weights unless pretrained=true is given).
        images: images.npz with x [N, C, H, W] and optionally y, or file.py:function that returns (x, y).
        max_accuracy_drop: points that may be lost.
        metric: accuracy needs y; agreement compares with the dense network; auto takes accuracy where there is y.
        cut: a cut point that `layerscope focus profile` lists, or auto.
        threads: CPU threads.
        seed: decides which images select and which confirm.
        save: write the focused model's weights and configuration here.
        html: also write the report to this page.
        json: also write the report as JSON.
    """
    import torch

    from layerscope.methods import focus

    torch.set_num_threads(threads)
    x, y = _images(images)
    found = focus.focus(
        _network(network, tuple(x.shape[1:])), [x if y is None else (x, y)], max_accuracy_drop=max_accuracy_drop,
        metric=None if metric == "auto" else metric, cut=cut, seed=seed, source=network,
    )  # fmt: skip
    assert found.report is not None
    if save is not None:
        print(f"saved to {found.save(save)}\n")
    if json is not None:
        found.report.to_json(json)
    _deliver(found.report, html)


def run(network: Network, focused: Focused, images: Images, batch: int = 1, threads: int = 1) -> None:
    """Run a saved focused model over images: what was computed, how long it took, how often it agrees with dense.

    Args:
        network: as for `search`.
        focused: what `search --save` wrote.
        images: as for `search`.
        batch: images at a time.
        threads: CPU threads.
    """
    import torch

    from layerscope.methods.focus.energy import measure, why_not
    from layerscope.methods.focus.model import FocusedModel
    from layerscope.methods.focus.samples import logits
    from layerscope.methods.focus.timing import interleaved, speedup

    torch.set_num_threads(threads)
    x, y = _images(images)
    model = FocusedModel.load(focused, _network(network, tuple(x.shape[1:])))
    batches = list(torch.split(x, batch))
    shares, routes, outputs, dense = [], [], [], []
    with torch.no_grad():
        for part in batches:
            outputs.append(logits(model(part)).argmax(1))
            shares += [float(m.float().mean()) for m in model.last_aoi]
            routes += model.last_route
            dense.append(logits(model.dense(part)).argmax(1))
    ours, theirs = torch.cat(outputs), torch.cat(dense)
    times = interleaved({"focused": model, "dense": model.dense}, batches[:50])
    ratio, low = speedup(times["dense"], times["focused"])
    share = sum(shares) / len(shares) if shares else 1.0
    print(f"{len(x)} images, {routes.count('focused')} focused, {100 * share:.0f} % of the cut's grid computed")
    print(f"agrees with the dense network on {100 * float((ours == theirs).float().mean()):.1f} %")
    if y is not None:
        own, full = (100 * float((found == y).float().mean()) for found in (ours, theirs))
        print(f"accuracy {own:.1f} %, dense {full:.1f} %")
    print(f"{ratio:.2f} times as fast as eager PyTorch (at least {low:.2f})")
    energy = measure(lambda: model(batches[0]))
    print(f"energy: not measured, {why_not()}" if energy is None else f"energy: {energy.joules:.3f} J per call")


def _deliver(report: Any, html: Path | None) -> None:
    from layerscope.report import print_result

    print_result(report)
    if html is not None:
        print(f"\nreport: {report.to_html(html)}")


def _network(source: str, in_shape: tuple[int, ...]) -> nn.Module:
    from layerscope import sources

    return sources.build(source, in_shape=in_shape, classes=1000).module.eval()


def _images(source: str) -> tuple[Tensor, Tensor | None]:
    import numpy as np
    import torch

    from layerscope.errors import DataError
    from layerscope.sources import factories

    if not source.endswith(".npz"):
        made = (factories.from_file if factories.is_file(source) else factories.from_package)(source)()
        x, y = made if isinstance(made, tuple) else (made, None)
        return torch.as_tensor(x).float(), None if y is None else torch.as_tensor(y)
    try:
        with np.load(source) as file:
            if "x" not in file:
                raise DataError(f"{source}: no array 'x' [N, C, H, W]; it holds {', '.join(file)}")
            return torch.from_numpy(file["x"]).float(), torch.from_numpy(file["y"]).long() if "y" in file else None
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read as .npz ({error})") from None


COMMANDS = {"profile": profile, "search": search, "run": run}
