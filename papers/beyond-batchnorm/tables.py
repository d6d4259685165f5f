"""Reproduce the reference tables of the Beyond BatchNorm system: ours beside the reference, every deviation marked.

    python papers/beyond-batchnorm/tables.py                 # all tables, about ten minutes on two cores
    python papers/beyond-batchnorm/tables.py --only plain    # some tables; --help lists them

Writes results/tables.json and results/tables.md beside this file. A value is marked ``!`` where it is off by more than
25 % (ratios and variances) or 0.05 (similarities, rates).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

import layerscope
from layerscope.probe.records import LayerRecord, Profile
from layerscope.verdict.trunk import layer_outputs

HERE = Path(__file__).parent
IMAGES = "fashion-mnist:pad=32,channels=3"
SMALL_IMAGES = "fashion-mnist:size=16"

Row = dict[str, float]


def profile(net: str, norm: str, data: str, *, batch: int = 32, seed: int = 0) -> Profile:
    """One probe at initialization."""
    x, y = layerscope.batch(data, batch, seed=0)
    model = layerscope.net(net, norm, in_shape=tuple(x.shape[1:]), classes=10, seed=seed)
    return layerscope.profile(model, (x, y), level="deep", seed=seed, source=net, norm=norm)


def stream(net: str, norm: str) -> list[LayerRecord]:
    """The residual blocks of a network, in order."""
    return [r for r in profile(net, norm, IMAGES).of("block") if r.residual]


def stage_factor(values: list[float]) -> float:
    """Geometric mean growth per block over the first stage (blocks 1 to 9)."""
    return (values[8] / values[0]) ** (1 / 8)


def number(value: float | None) -> float:
    return math.nan if value is None else value


def resnet56(norm: str) -> Row:
    blocks = stream("resnet56", norm)
    v = [number(b.variance) for b in blocks]
    return {
        "b1": v[0], "b9": v[8], "b18": v[17], "b27": v[26], "factor": stage_factor(v), "ms27": number(blocks[26].ms),
        "grad": number(blocks[0].grad_norm) / number(blocks[26].grad_norm), "cos27": number(blocks[26].cosine),
    }  # fmt: skip


def skipinit(norm: str) -> Row:
    v = [number(b.variance) for b in stream("resnet56:skipinit=true", norm)]
    return {"b1": v[0], "b9": v[8], "b27": v[26], "factor": stage_factor(v)}


def preact(norm: str) -> Row:
    ms = [number(b.ms) for b in stream("resnet56:preact=true", norm)]
    return {"ms9": ms[8], "ms27": ms[26], "factor": stage_factor(ms)}


def plain(norm: str) -> Row:
    row: Row = {}
    for depth in (10, 20):
        seen = [profile(f"cfg_{depth}", norm, IMAGES, seed=seed) for seed in (0, 1)]
        convs = [[number(r.grad_norm) for r in p.of("conv")] for p in seen]
        row[f"cos{depth}"] = mean(number(p.readout_cosine_unpooled) for p in seen)
        row[f"pool{depth}"] = mean(number(p.readout_cosine) for p in seen)
        row[f"ratio{depth}"] = mean(g[0] / g[-1] for g in convs)
        if depth == 20:
            row["rate20"] = mean((g[0] / g[-1]) ** (1 / (len(g) - 1)) for g in convs)
            row["rank20"] = mean(number(layer_outputs(p)[-1].stable_rank) for p in seen)
    return row


def batch_size(size: str) -> Row:
    seen = [profile("mlp:width=256,depth=20", "batch", "gaussian:shape=256", batch=int(size), seed=s) for s in range(4)]
    hidden = [[number(r.grad_scaled) for r in p.of("linear")[:-1]] for p in seen]
    return {
        "cos": mean(number(layer_outputs(p)[-1].cosine) for p in seen),
        "rate": mean((g[0] / g[-1]) ** (1 / (len(g) - 1)) for g in hidden),
    }


def nu(net: str, norm: str, batch: int) -> float:
    """The batch-noise ratio at batch size ``batch``: median over five draws of 64 images."""
    found = []
    for seed in range(5):
        x, y = layerscope.batch(SMALL_IMAGES, 64, seed=seed)
        model = layerscope.net(net, norm, in_shape=tuple(x.shape[1:]), classes=10, seed=0)
        seen = layerscope.profile(model, (x, y), level="light", batch_size=batch, batch_noise=True, seed=seed)
        found.append(number(seen.batch_noise))
    return statistics.median(found)


def noise(name: str) -> Row:
    norm, depth = name.split(", ")
    net = f"plain:depth={depth.split()[0]}"
    return {f"B{b}": nu(net, norm, b) for b in (2, 4, 8, 32)}


class Tokens(nn.Module):
    """The blocks of a ViT without its classifier: every token is an output."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = vit.embed, vit.blocks
        with torch.no_grad():
            for block in self.blocks:
                block.feed_forward.branch.down.weight.mul_(math.sqrt(2))  # the variance that ReLU halves

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], every pixel a token -> tokens [N, S, C]."""
        out: Tensor = self.blocks(self.embed(x.flatten(2).transpose(1, 2)))
        return out


def random_projection(out: Tensor, _: Tensor) -> Tensor:
    """A gradient that is independent for every token, as a loss at every token gives."""
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum()


def transformer(name: str) -> Row:
    where, norm = name.split(", ")
    net = f"vit:width=64,depth=24,heads=1,patch=1,act=relu,placement={where.replace(' ', ',')}"
    x, y = layerscope.batch("gaussian:shape=64x4x8", 32, seed=0)
    adds = []
    for seed in (0, 1):
        model = Tokens(layerscope.net(net, norm, in_shape=tuple(x.shape[1:]), seed=seed))
        seen = layerscope.profile(model, (x, y), level="deep", loss=random_projection, seed=seed)
        adds.append([r for r in seen.of("block") if r.name.count(".") == 2])  # attention and feed-forward, in turn
    return {
        "cos_token": mean(number(a[-1].cosine_token) for a in adds),
        "cos_mean": mean(number(a[-1].cosine_pooled) for a in adds),
        "ms": geometric(number(a[-1].ms) for a in adds),
        "grad": geometric(number(a[0].grad_norm) / number(a[-1].grad_norm) for a in adds),
    }


def geometric(values: Iterable[float]) -> float:
    return math.exp(mean(math.log(v) for v in values))


TABLES: dict[str, Callable[[str], Row]] = {
    "resnet56": resnet56, "skipinit": skipinit, "preact": preact, "plain": plain, "batch_size": batch_size,
    "noise": noise, "transformer": transformer,
}  # fmt: skip


def is_off(column: str, ours: float, reference: float) -> bool:
    """Outside the agreed distance: 0.05 for similarities and rates, 25 % for everything else."""
    if column.startswith(("cos", "pool", "rate")):
        return not abs(ours - reference) <= 0.05
    return not abs(ours / reference - 1) <= 0.25


def measure(names: list[str]) -> Iterator[dict[str, object]]:
    reference = tomllib.loads((HERE / "reference.toml").read_text())
    for table in names:
        columns = reference[table].pop("columns")
        for key, values in reference[table].items():
            started = time.perf_counter()
            row = TABLES[table](key)
            print(f"{table:<11} {key:<36} {time.perf_counter() - started:5.1f} s", flush=True)
            for column, value in zip(columns, values, strict=False):
                yield {"table": table, "row": key, "column": column, "ours": row[column], "reference": value}


def to_markdown(cells: list[dict[str, object]]) -> str:
    """The tables as text: ours (reference), with ``!`` on every value outside the agreed distance."""
    parts = []
    for table in dict.fromkeys(str(c["table"]) for c in cells):
        mine = [c for c in cells if c["table"] == table]
        columns = list(dict.fromkeys(str(c["column"]) for c in mine))
        parts.append(f"### {table}\n\n| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
        for row in dict.fromkeys(str(c["row"]) for c in mine):
            found = {str(c["column"]): c for c in mine if c["row"] == row}
            texts = []
            for column in columns:
                cell = found.get(column)
                if cell is None:
                    texts.append("")
                    continue
                ours, reference = float(cell["ours"]), float(cell["reference"])  # type: ignore[arg-type]
                texts.append(f"{ours:.3g} ({reference:.3g}){' !' if is_off(column, ours, reference) else ''}")
            parts.append(f"| {row} | " + " | ".join(texts) + " |")
        parts.append("")
    off = sum(is_off(str(c["column"]), float(c["ours"]), float(c["reference"])) for c in cells)  # type: ignore[arg-type]
    parts.append(f"{len(cells)} values, {off} outside the agreed distance (marked `!`).")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "tables.json"
    kept = json.loads(store.read_text()) if store.exists() else []
    cells = [c for c in kept if c["table"] not in arguments.only] + list(measure(arguments.only))
    cells.sort(key=lambda c: list(TABLES).index(c["table"]))
    store.write_text(json.dumps(cells, indent=1) + "\n")
    (arguments.out / "tables.md").write_text(to_markdown(cells))
    print(f"wrote {arguments.out / 'tables.md'}")


if __name__ == "__main__":
    main()
