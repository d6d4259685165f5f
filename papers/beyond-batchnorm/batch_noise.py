"""Does the probe's batch noise, read from second looks, say what the definition says?

    python papers/beyond-batchnorm/batch_noise.py        # adds the rows that results/batch-noise.md has not; 12 CPU min

The definition, nu = E_x Var_batch z(x) / Var_x E_batch z(x), is evaluated by brute force: batches are drawn from 1,024
images with replacement until an image has been seen six times on average, and ``quantities.batch_noise_of`` parts the
variance. The estimate is that of ``layerscope.profile`` on as many batches as ``layerscope compare`` takes (32 images,
at least one batch), for sixteen draws of these images; shown are its median and its range without the lowest and
highest sixth. Networks are at initialization, seed 0.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import layerscope
from layerscope.quantities import batch_noise_of
from layerscope.verdict.decision import noise_level
from layerscope.verdict.thresholds import Thresholds

IMAGES = "digits:size=16"
POOL, VIEWS, DRAWS = 1024, 6, 16
NETS = ("cfg_10:width=16", "cfg_20:width=16", "resnet20:width=16", "resnet56:width=16", "mlp:width=64,depth=10")
NORMS = ("ghost:size=8", "renorm", "mixture", "mode", "variance", "evonorm-b0", "switchable", "mean")
#: network, norm, batch size, batches (None: as many as ``compare`` takes)
ROWS: list[tuple[str, str, int, int | None]] = [
    *((net, "batch", size, None) for net in NETS for size in (4, 8, 16, 32, 64)),
    *((net, "batch", 32, 2) for net in NETS),
    *(("cfg_10:width=16", norm, size, None) for norm in NORMS for size in (8, 32)),
    *(("cfg_20:width=16", norm, 16, None) for norm in ("ghost:size=8", "variance", "mixture")),
    *(("vit:depth=4", "batch", size, None) for size in (8, 32)),
]
HEAD = """# The batch noise of the probe against its definition

`python papers/beyond-batchnorm/batch_noise.py`. Images of {images}. Level: of axis N by the
definition's value, and how often the estimate has the same in {draws} draws.

| network | norm | B | batches | definition | estimate [16 %, 84 %] | ratio | level | same level |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batch-noise.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x, y = layerscope.batch(IMAGES, POOL, seed=0)
    head = HEAD.format(images=IMAGES, draws=DRAWS)
    old = args.out.read_text().splitlines() if args.out.exists() else []
    lines = {key(line): line for line in old if line.startswith("| ")}
    table = {(net, norm, str(size), str(batches or max(1, 32 // size))): None for net, norm, size, batches in ROWS}
    for name in table:
        if name in lines:
            continue
        net, norm, size, count = name[0], name[1], int(name[2]), int(name[3])
        model = layerscope.net(net, norm, in_shape=tuple(x.shape[1:]), classes=10, seed=0).train()
        want = definition(model, x, size)
        lines[name] = row(net, norm, size, count, want, [estimate(model, x, y, size, count, s) for s in range(DRAWS)])
        print(lines[name], flush=True)
        args.out.write_text(head + "\n".join(lines[n] for n in table if n in lines) + "\n")
    found = [lines[name] for name in table]
    ratios = [float(line.split("|")[7]) for line in found]
    low, *_, high = statistics.quantiles(ratios, n=20)
    same = [int(line.split("|")[9].split()[0]) for line in found]
    last = (
        f"\n{len(found)} rows. Ratio of the median estimate to the definition: {statistics.median(ratios):.2f} in the "
        f"median row, {low:.2f} to {high:.2f} in nine rows of ten, {min(ratios):.2f} to {max(ratios):.2f} in all. "
        f"Same level in {sum(same) / len(same) / DRAWS:.0%} of all draws.\n"
    )
    args.out.write_text(head + "\n".join(found) + "\n" + last)
    print(last)


def key(line: str) -> tuple[str, ...]:
    """Network, norm, batch size and batches of a row of the table."""
    return tuple(cell.strip() for cell in line.split("|")[1:5])


def definition(model: nn.Module, x: Tensor, size: int) -> float:
    """Nu over many independent sets of companions. Every batch meets the network in the same state."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    seen: list[Tensor] = []
    handle = heads[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(1)))
    buffers = [(b, b.clone()) for b in model.buffers()]
    generator = torch.Generator().manual_seed(1)
    samples: list[Tensor] = []
    with torch.no_grad():
        for _ in range(VIEWS * len(x) // size):
            batch = torch.randint(len(x), (size,), generator=generator)
            model(x[batch])
            # copies of one image in one batch are one view of it: they share their companions
            once = torch.tensor([bool((batch[:i] != batch[i]).all()) for i in range(size)])
            seen[-1], batch = seen[-1][once], batch[once]
            samples.append(batch)
            for buffer, value in buffers:
                buffer.copy_(value)
    handle.remove()
    return float(batch_noise_of(torch.cat(seen), torch.cat(samples)))


def estimate(model: nn.Module, x: Tensor, y: Tensor, size: int, batches: int, seed: int) -> float:
    """The probe's nu on one draw of the images."""
    index = torch.randperm(len(x), generator=torch.Generator().manual_seed(100 + seed))[: size * batches]
    seen = layerscope.profile(
        model, (x[index], y[index]), level="light", batch_size=size, batch_noise=True, seed=seed, select=["*head*"]
    )
    assert seen.batch_noise is not None
    return seen.batch_noise


def row(net: str, norm: str, size: int, batches: int, want: float, found: list[float]) -> str:
    limits = Thresholds()
    level = noise_level(want, size, limits)
    same = sum(noise_level(nu, size, limits) == level for nu in found)
    ordered = sorted(found)
    low, middle, high = ordered[len(found) // 6], statistics.median(found), ordered[-1 - len(found) // 6]
    return (
        f"| {net} | {norm} | {size} | {batches} | {want:.3g} | {middle:.3g} [{low:.3g}, {high:.3g}] "
        f"| {middle / want:.2f} | {level} | {same} of {len(found)} |"
    )


if __name__ == "__main__":
    main()
