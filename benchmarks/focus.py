"""Focused convolutions against the best dense engines: layer kernels and whole networks, one thread.

    python benchmarks/focus.py                     # everything; some minutes
    python benchmarks/focus.py --nets resnet50 --repeats 20
    python benchmarks/focus.py --layers-only

Every output is compared with an independent masked dense reference before it is timed. Contestants run in turn on the
same input; the minimum CPU time over the repeats counts, and every figure is a ratio. ``full`` is the same code with
nothing skipped: what it gains over an engine is better dense code, and only the entries divided by it are the gain of
focusing. Choosing the positions is part of the time; the masks are blobs, smooth random fields cut at a quantile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.engines import all_engines
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.levels import Geometry, Level, gather
from layerscope.methods.focus.ops import Conv
from layerscope.methods.focus.plan import make_plan, zero_fills
from layerscope.methods.focus.reference import masked_forward
from layerscope.methods.focus.runner import Runner

INACTIVE = (0.0, 0.25, 0.5, 0.75, 0.9)
#: network -> the cut right after its first layers
NETS = {"resnet18": "maxpool", "resnet50": "maxpool", "convnext_tiny": "permute_1", "vgg16": "features.1"}
#: ResNet-50's 3 x 3 layers: channels, grid
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))


def blob(height: int, width: int, active: float, seed: int = 0) -> Tensor:
    """A smooth random area with exactly this active share, [1, H, W]."""
    if active >= 1:
        return torch.ones(1, height, width, dtype=torch.bool)
    radius = max(1, height // 7)
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(1, 1, height + 4 * radius, width + 4 * radius, generator=generator)
    kernel = torch.ones(1, 1, 2 * radius + 1, 2 * radius + 1)
    field = F.conv2d(F.conv2d(field, kernel), kernel)[0, 0]
    return (field >= field.flatten().quantile(1 - active))[None]


def fastest(contestants: dict[str, Any], repeats: int) -> dict[str, float]:
    """Milliseconds of CPU time of each, in turn, minimum over repeats."""
    best = dict.fromkeys(contestants, float("inf"))
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.process_time_ns()
            run()
            best[name] = min(best[name], (time.process_time_ns() - start) / 1e6)
    return best


def network(name: str) -> nn.Module:
    """A torchvision network with random weights and random BatchNorm statistics (the default ones hide errors)."""
    models = _torchvision_models()
    torch.manual_seed(0)
    net = getattr(models, name)().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net


def _torchvision_models() -> Any:
    try:
        import torchvision.models as models
    except RuntimeError:  # a CUDA build of torchvision beside a CPU torch: declare the operators it looks for
        for module in [m for m in sys.modules if m.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.models as models

        _KEPT.append(library)
    return models


_KEPT: list[Any] = []


def bench_network(name: str, repeats: int, batch: int, backend: str) -> dict[str, Any]:
    """Milliseconds of the dense engines and of the focused network at each inactive share."""
    model, x = network(name), torch.randn(batch, 3, 224, 224)
    chosen = make_backend(backend)
    traced = trace(model, x)
    plan = make_plan(traced, traced.cut(NETS[name]), stem_on_rows=chosen.stem_on_rows)
    fills = zero_fills(plan)
    runner = Runner(plan, chosen, fills)
    engines = {e.name: e.run for e in all_engines(model, x) if e.run is not None}
    contestants: dict[str, Any] = {k: (lambda run=run: run(x)) for k, run in engines.items()}
    shares: dict[str, list[float]] = {}
    with torch.no_grad():
        grid = traced.cut(NETS[name]).grid
        for inactive in INACTIVE:
            masks = torch.cat([blob(*grid, 1 - inactive, seed=i) for i in range(batch)])
            want = masked_forward(plan, fills, x, masks)
            got = runner.tail(runner.stem(x), masks)
            error = float((got - want).abs().max() / want.abs().max())
            assert error < 1e-4, f"{name} at {inactive}: differs from the masked dense reference by {error:.1e}"
            shares[f"{inactive:.2f}"] = _level_shares(runner, x, masks)
            contestants[f"{inactive:.2f}"] = lambda masks=masks: runner.tail(runner.stem(x), masks.clone())
        ms = fastest(contestants, repeats)
    return {"name": name, "cut": NETS[name], "batch": batch, "backend": chosen.name, "ms": ms, "shares": shares}


def _level_shares(runner: Runner, x: Tensor, masks: Tensor) -> list[float]:
    found: dict[tuple[int, ...], float] = {}
    runner.observe = lambda step, value: (
        found.setdefault(tuple(value.level.mask.shape), value.level.share) if hasattr(value, "level") else None
    )
    runner.tail(runner.stem(x), masks)
    runner.observe = None
    return [round(s, 3) for s in found.values()]


def bench_layers(repeats: int, backend: str) -> list[dict[str, Any]]:
    """ResNet-50's 3 x 3 layers: speed-up over the best dense convolution, and as a share of the ideal 1 / active."""
    chosen, rows = make_backend(backend), []
    for channels, size in LAYERS:
        torch.manual_seed(0)
        x, weight = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
        bias = torch.randn(channels)
        kind = Conv(weight, bias, Geometry((3, 3), (1, 1), (1, 1)))
        operation = chosen.conv(kind, "none", None)
        contestants = _dense_convolutions(x, weight, bias)
        for inactive in INACTIVE:
            level = Level(blob(size, size, 1 - inactive), chosen.tables)
            level.table(kind.geometry)  # shared by all layers of a level
            data, out = gather(x, level).contiguous(), torch.empty(level.n, channels)
            operation(data, level, None, out)
            want = gather(F.conv2d(x * level.mask[:, None], weight, bias, padding=1), level)
            assert float((out - want).abs().max()) < 2e-3
            contestants[f"{inactive:.2f}"] = lambda d=data, lv=level, o=out, run=operation: run(d, lv, None, o)
            contestants[f"{inactive:.2f}"].__dict__["share"] = level.share
        with torch.no_grad():
            ms = fastest(contestants, repeats)
        dense = min(ms[k] for k in ms if not k[0].isdigit())
        for inactive in INACTIVE:
            key = f"{inactive:.2f}"
            active = contestants[key].__dict__["share"]
            rows.append(
                {"channels": channels, "grid": size, "inactive": inactive, "active": active, "speedup": dense / ms[key],
                 "of_ideal": dense / ms[key] * active}
            )  # fmt: skip
    return rows


def _dense_convolutions(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Any]:
    last = x.contiguous(memory_format=torch.channels_last)
    weight_last = weight.contiguous(memory_format=torch.channels_last)
    found: dict[str, Any] = {
        "eager": lambda: F.conv2d(x, weight, bias, padding=1),
        "eager channels_last": lambda: F.conv2d(last, weight_last, bias, padding=1),
    }
    try:  # prepacked weights, as torch.compile with freezing uses them
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), [1, 1], [1, 1], [1, 1], 1, list(x.shape))
        call = torch.ops.mkldnn._convolution_pointwise
        call(last, packed, bias, [1, 1], [1, 1], [1, 1], 1, "none", [], "")
    except (RuntimeError, AttributeError):
        return found
    found["prepacked"] = lambda: call(last, packed, bias, [1, 1], [1, 1], [1, 1], 1, "none", [], "")
    return found


def show_networks(results: list[dict[str, Any]]) -> str:
    """Two tables: against the best dense engine, and against the own full run."""
    head = "| network (cut, batch) | engine | " + " | ".join(f"{100 * i:.0f} %" for i in INACTIVE) + " |"
    lines = [head, "|" + "---|" * (len(INACTIVE) + 2)]
    for r in results:
        label = f"{r['name']} ({r['cut']}, b{r['batch']})"
        for engine in (k for k in r["ms"] if not k[0].isdigit()):
            cells = [f"{r['ms'][engine] / r['ms'][f'{i:.2f}']:.2f}" for i in INACTIVE]
            lines.append(f"| {label} | {engine} {r['ms'][engine]:.1f} ms | " + " | ".join(cells) + " |")
        cells = [f"{r['ms']['0.00'] / r['ms'][f'{i:.2f}']:.2f}" for i in INACTIVE]
        lines.append(f"| {label} | own full run: focusing alone | " + " | ".join(cells) + " |")
        cells = [" / ".join(f"{s:.2f}" for s in r["shares"][f"{i:.2f}"]) for i in INACTIVE]
        lines.append(f"| {label} | active share level by level | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show_layers(rows: list[dict[str, Any]]) -> str:
    """One line per layer and inactive share."""
    lines = ["| layer | inactive | speed-up over the best dense | share of ideal |", "|---|---|---|---|"]
    lines += [
        f"| 3x3, {r['channels']} channels at {r['grid']} | {100 * r['inactive']:.0f} % | {r['speedup']:.2f} | "
        f"{r['of_ideal']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name and the instruction set that torch uses on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--layers-only", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    note = f"{processor()}, torch {torch.__version__}, one thread, load {load:.1f}"
    print(f"Speed-ups; the columns are inactive shares at the cut. {note}, {args.repeats} repeats\n")
    layers = bench_layers(10 * args.repeats, args.backend)
    print(show_layers(layers) + "\n", flush=True)
    results = []
    for name in [] if args.layers_only else args.nets:
        results.append(bench_network(name, args.repeats, args.batch, args.backend))
        print(show_networks(results[-1:]) + "\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"note": note, "layers": layers, "networks": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
