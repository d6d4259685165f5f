"""Would active rows pay on a GPU? An indirect convolution in Triton against cuDNN, layer by layer; whole networks.

    python benchmarks/focus_gpu.py --out focus_gpu.jsonl      # needs a CUDA device and timm; about a minute

For each layer of ResNet-50 and batch size: cuDNN (float16, channels last) against a Triton kernel that reads its input
rows through an index table (gather and implicit matrix product in one; float16, accumulated in float32), both replayed
from CUDA graphs so that launching costs nothing. Outputs are compared with the masked dense layer before timing. The
sum over the layers bounds what a whole focused network could gain. One JSON line per result, written as it is found.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

INACTIVE = (0.0, 0.5, 0.75, 0.9)
#: ResNet-50 after its stem: (count, in, out, kernel, grid); strided layers are counted with their output grid
LAYERS = (
    (1, 64, 64, 1, 56), (3, 64, 64, 3, 56), (4, 64, 256, 1, 56), (2, 256, 64, 1, 56), (1, 256, 128, 1, 56),
    (4, 128, 128, 3, 28), (4, 128, 512, 1, 28), (3, 512, 128, 1, 28), (1, 512, 256, 1, 28),
    (6, 256, 256, 3, 14), (6, 256, 1024, 1, 14), (5, 1024, 256, 1, 14), (1, 1024, 512, 1, 14),
    (3, 512, 512, 3, 7), (3, 512, 2048, 1, 7), (2, 2048, 512, 1, 7),
)  # fmt: skip
TILES = ((64, 64, 32, 4), (128, 64, 32, 4), (64, 128, 64, 4), (128, 128, 32, 8), (128, 128, 64, 8), (32, 64, 64, 4))


@triton.jit
def rows_conv(x, table, w, bias, y, n, c, o, taps, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y[r] = relu(bias + sum_t x[table[r, t]] W_t); a negative entry reads zeros. w is [taps * c, o]."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for t in range(taps):
        index = tl.load(table + rows * taps + t, mask=rows < n, other=-1)
        for k in range(0, c, BK):
            a = tl.load(x + index[:, None] * c + (k + ks)[None, :], mask=(index >= 0)[:, None], other=0.0)
            b = tl.load(w + (t * c + k + ks)[:, None] * o + cols[None, :], mask=(cols < o)[None, :], other=0.0)
            acc = tl.dot(a, b, acc)
    acc = tl.maximum(acc + tl.load(bias + cols, mask=cols < o, other=0.0)[None, :], 0.0)
    inside = (rows < n)[:, None] & (cols < o)[None, :]
    tl.store(y + rows[:, None] * o + cols[None, :], acc.to(y.dtype.element_ty), mask=inside)


def call_rows(x: Tensor, table: Tensor, w: Tensor, bias: Tensor, y: Tensor, tile: tuple[int, int, int, int]) -> None:
    bm, bn, bk, warps = tile
    grid = (triton.cdiv(y.shape[0], bm), triton.cdiv(y.shape[1], bn))
    rows_conv[grid](
        x, table, w, bias, y, y.shape[0], x.shape[1], y.shape[1], table.shape[1], bm, bn, bk, num_warps=warps
    )


def blobs(images: int, size: int, active: float, seed: int = 0) -> Tensor:
    """Smooth random areas [N, H, W], each with this active share."""
    if active >= 1:
        return torch.ones(images, size, size, dtype=torch.bool)
    radius = max(1, size // 7)
    field = torch.randn(images, 1, size + 4 * radius, size + 4 * radius, generator=torch.Generator().manual_seed(seed))
    kernel = torch.ones(1, 1, 2 * radius + 1, 2 * radius + 1)
    field = F.conv2d(F.conv2d(field, kernel), kernel)[:, 0]
    return field >= field.flatten(1).quantile(1 - active, dim=1)[:, None, None]


def deeper(mask: Tensor, size: int) -> Tensor:
    """The set on a coarser grid: active where any position of the cell is."""
    return F.max_pool2d(mask[:, None].float(), mask.shape[1] // size)[:, 0] > 0


def index_table(mask: Tensor, kernel: int) -> Tensor:
    """[n, kernel^2] row numbers; -1 where there is none."""
    numbers = torch.full(mask.shape, -1, dtype=torch.int32)
    numbers[mask] = torch.arange(int(mask.sum()), dtype=torch.int32)
    p = kernel // 2
    padded = F.pad(numbers, (p, p, p, p), value=-1)
    windows = padded.unfold(1, kernel, 1).unfold(2, kernel, 1).reshape(*mask.shape, -1)
    return windows[mask].contiguous()


def replayed(run: Callable[[], object], repeats: int = 20) -> float:
    """Microseconds of one call inside a CUDA graph of ten; the minimum over repeats."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    best = float("inf")
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, 100 * start.elapsed_time(end))
    return best


def layer(channels: int, out: int, kernel: int, mask: Tensor, device: str) -> dict[str, Any]:
    """Microseconds of both, outputs compared first."""
    torch.manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    images, size = mask.shape[0], mask.shape[1]
    x = torch.randn(images, channels, size, size).to(device, dtype).contiguous(memory_format=torch.channels_last)
    w = (torch.randn(out, channels, kernel, kernel) / (channels * kernel * kernel) ** 0.5).to(device, dtype)
    w = w.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(out).to(device, dtype)
    where = mask.to(device)
    rows = x.permute(0, 2, 3, 1)[where].contiguous()
    table = index_table(mask, kernel).to(device)
    packed = w.permute(2, 3, 1, 0).reshape(-1, out).contiguous()
    y = torch.empty(rows.shape[0], out, device=device, dtype=dtype)

    def dense() -> Tensor:
        return F.relu_(F.conv2d(x, w, bias, padding=kernel // 2))

    want = F.relu(F.conv2d((x * where[:, None]).float(), w.float(), bias.float(), padding=kernel // 2))
    want = want.permute(0, 2, 3, 1)[where]
    tiles = TILES if device == "cuda" else TILES[:1]
    times = {}
    for tile in tiles:
        call_rows(rows, table, packed, bias, y, tile)
        error = float((y.float() - want).abs().max() / want.abs().max())
        assert error < 5e-3, f"tile {tile}: differs from the masked dense layer by {error:.1e}"
        if device == "cuda":
            times[str(tile)] = replayed(partial(call_rows, rows, table, packed, bias, y, tile))
    if device != "cuda":
        return {"rows_us": 0.0, "dense_us": 0.0}
    best = min(times, key=times.__getitem__)
    return {"rows_us": times[best], "dense_us": replayed(dense), "tile": best}


def networks(say: Callable[[dict[str, Any]], None], batches: tuple[int, ...]) -> None:
    """Milliseconds of whole dense networks: eager TF32, eager float16 channels last, and that from a CUDA graph."""
    import timm

    for name in ("resnet50", "resnet18", "convnext_tiny"):
        net = timm.create_model(name).eval().cuda()
        half = copy.deepcopy(net).half().to(memory_format=torch.channels_last)
        for batch in batches:
            x = torch.randn(batch, 3, 224, 224, device="cuda")
            last = x.half().contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                tf32, fp16 = partial(net, x), partial(half, last)
                ms = {"eager_tf32": eager(tf32), "eager_fp16": eager(fp16), "graph_fp16": replayed(fp16, 10) / 1e3}
            say({"kind": "network", "name": name, "batch": batch, "ms": ms})


def eager(run: Callable[[], object], repeats: int = 20) -> float:
    for _ in range(3):
        run()
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        best = min(best, 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("focus_gpu.jsonl"))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--device", default="cuda", help="cpu checks the kernel alone, under TRITON_INTERPRET=1")
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="only the first so many")
    args = parser.parse_args()
    with args.out.open("a") as file:

        def say(row: dict[str, Any]) -> None:
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()

        if args.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
            name = torch.cuda.get_device_name()
            say({"kind": "machine", "gpu": name, "torch": torch.__version__, "triton": triton.__version__})
        for batch in args.batches:
            for inactive in INACTIVE:
                base = blobs(batch, 56, 1 - inactive)
                total = {"rows_us": 0.0, "dense_us": 0.0}
                for count, channels, out, kernel, size in LAYERS[: args.layers]:
                    mask = base if size == 56 else deeper(base, size)
                    found = layer(channels, out, kernel, mask, args.device)
                    share = float(mask.float().mean())
                    spec = {"channels": channels, "out": out, "kernel": kernel, "grid": size}
                    say({"kind": "layer", "batch": batch, "inactive": inactive, **spec, "active": share, **found})
                    for key in total:
                        total[key] += count * found[key]
                say({"kind": "sum", "batch": batch, "inactive": inactive, **total})
        if args.device == "cuda":
            networks(say, tuple(args.batches))


if __name__ == "__main__":
    main()
