"""The paper's figures and claims, from the committed rows or by running what is missing.

    layerscope reproduce beyond-batchnorm                       # figures and claims from the committed rows: seconds
    layerscope reproduce beyond-batchnorm --run                 # first run every trial that has no row yet (resumable)
    layerscope reproduce beyond-batchnorm --run --scale small   # only the parts that a CPU runs in minutes
    layerscope reproduce beyond-batchnorm --run --only probes   # one part
    layerscope reproduce beyond-batchnorm --run --scale small --limit 2 --out /tmp/try   # a taste, nothing committed

Parts: probes, curves, groups, study, and curves-small, the curves at the scale of a CPU (curves and groups want a GPU).
``--run`` keeps its rows in results/PART.sqlite, takes the committed ones as done, can be interrupted and goes on when
called again. Written: results/*.svg and the table of claims in README.md; with ``--out`` everything goes to that
folder, which begins empty.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import figures
from figures import Panel

from layerscope import study
from layerscope.study import rowfile
from layerscope.study.statistics import spearman

HERE = Path(__file__).parent
CARD = HERE / "README.md"
#: Part -> its row file.
PARTS = {
    "probes": "probes",
    "curves": "curves",
    "groups": "groups",
    "study": "trials",
    "curves-small": "curves-small",
}
SCALES = {"all": tuple(PARTS), "small": ("probes", "curves-small")}
MARKS = ("<!-- claims: written by reproduce.py -->", "<!-- end of claims -->")
Rows = list[dict[str, Any]]

#: Where one group of all channels stands on an axis of group sizes.
ONE_GROUP = 512

SIZES = {
    "instance": 1,
    "group:size=2": 2,
    "group:size=4": 4,
    "group:size=8": 8,
    "group:size=16": 16,
    "group:size=32": 32,
}


def rows(part: str, folder: Path) -> Rows:
    """Finished rows of a part, flat: those of a local run if there is one, else the row file."""
    what = study.load(HERE / f"{part}.toml")
    local, kept = folder / f"{part}.sqlite", folder / f"{PARTS[part]}.jsonl.gz"
    source = local if local.exists() else kept
    return [r for r in study.flatten(rowfile.rows_of(source), what) if r["state"] == "done"] if source.exists() else []


def run(part: str, folder: Path, limit: int | None = None, workers: int | None = None) -> None:
    """Run what a part has no row for, at most ``limit`` trials, and write its row file."""
    what = study.load(HERE / f"{part}.toml")
    store, kept = folder / f"{part}.sqlite", folder / f"{PARTS[part]}.jsonl.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with study.Store(store, write=True) as results:
        if kept.exists():
            rowfile.merge(results, rowfile.read(kept))
        before = study.standing(what, results)
    print(f"{part}: {before.left} of {before.total} trials to run", flush=True)
    if before.left:
        ended = before.done + before.failed
        with study.Progress(min(before.total, ended + (limit or before.left)), ended) as progress:
            study.run(what, study.local(workers), store=store, watch=progress, limit=limit)
        rowfile.write(rowfile.rows_of(store), kept)


def series(row: Mapping[str, Any], name: str) -> list[float]:
    """A series of a row; what was not measured is NaN."""
    found = row.get(f"series.{name}") or row.get(f"curve.{name}") or "[]"
    return [math.nan if v is None else float(v) for v in json.loads(found)]


def at(table: Rows, **values: Any) -> Rows:
    """Rows with these values."""
    return [r for r in table if all(r.get(k) == v for k, v in values.items())]


def _points(values: Iterable[float], step: float = 1.0) -> list[tuple[float, float]]:
    return [((i + 1) * step, v) for i, v in enumerate(values)]


# -- figures ---------------------------------------------------------------------------------------------------------


def net_name(row: Mapping[str, Any]) -> str:
    """The architecture of a row, whatever its width: ``resnet56`` or ``resnet56 with SkipInit``."""
    name = str(row["net"])
    return name.partition(":")[0] + (" with SkipInit" if "skipinit=true" in name else "")


def scale(table: Rows) -> str:
    """What rows were run on and at what size, in a few words."""
    row = table[0]
    width = str(row["net"]).partition("width=")[2].partition(",")[0] or "64"
    image = str(row["data"]).partition("=")[2]
    machines = sorted({str(r["hardware"]).partition(";")[0] for r in table})
    return f"width {width}, {image} x {image}, {row['steps']} steps, {' and '.join(machines)}"


def draw_curves(table: Rows, path: Path) -> None:
    """Training accuracy over steps, a panel for each architecture and batch size."""
    nets = [
        n for n in ("cfg_10", "cfg_20", "resnet56", "resnet56 with SkipInit") if any(net_name(r) == n for r in table)
    ]
    panels = []
    for size in sorted({r["batch_size"] for r in table}, reverse=True):
        for net in nets:
            chosen = [r for r in table if net_name(r) == net and r["batch_size"] == size]
            lines = {r["norm"]: _points(series(r, "accuracy"), r["steps"] / 20) for r in chosen}
            if lines:
                panels.append(Panel(f"{net}, batch {size}", "step", "training accuracy", lines))
    if panels:
        figures.write(path, panels, columns=len(nets))


def draw_probes(table: Rows, path: Path) -> None:
    """Second moment, similarity, rank and gradient along the depth."""
    few = ("batch", "layer", "instance", "group:size=8", "frn", "variance", "weight", "sws", "none", "evonorm-b0")
    panels = [
        Panel(
            f"{net}: second moment",
            "block",
            "mean square",
            {r["norm"]: _points(series(r, "ms")) for r in at(table, net=net) if r["norm"] in few},
            log=True,
        )
        for net in ("resnet56", "resnet56:skipinit=true")
    ]
    plain = at(table, net="cfg_20")
    panels.append(
        Panel(
            "cfg_20: similarity",
            "layer",
            "cosine between samples",
            {r["norm"]: _points(series(r, "cosine")) for r in plain if r["norm"] in few},
        )
    )
    panels.append(
        Panel(
            "cfg_20: gradient",
            "layer",
            "scale-free gradient",
            {r["norm"]: _points(series(r, "grad")) for r in plain if r["norm"] in few},
            log=True,
        )
    )
    figures.write(path, panels)


def draw_ranks(table: Rows, path: Path) -> None:
    """Rank, similarity and gradient along the depth, a line for each group size."""
    grouped = [r for r in at(table, net="cfg_20") if r["norm"] in SIZES or r["norm"] == "layer"]
    figures.write(
        path,
        [
            Panel(
                "stable rank",
                "layer",
                "N / largest eigenvalue",
                {r["norm"]: _points(series(r, "rank")) for r in grouped},
            ),
            Panel("similarity", "layer", "cosine", {r["norm"]: _points(series(r, "cosine")) for r in grouped}),
            Panel(
                "gradient", "layer", "scale-free", {r["norm"]: _points(series(r, "grad")) for r in grouped}, log=True
            ),
        ],
    )


def draw_groups(table: Rows, path: Path) -> None:
    """Mean training accuracy over the group size, for each batch size and learning rate."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in table:
        lines.setdefault(f"batch {r['batch_size']}, rate {r['lr']:g}", []).append(
            (_size(r), r["outcome.mean_accuracy"])
        )
    panel = Panel(
        "GroupNorm in cfg_20",
        f"channels a group ({ONE_GROUP}: one group)",
        "mean training accuracy",
        {k: sorted(v) for k, v in sorted(lines.items())},
        log_x=True,
    )
    figures.write(path, [panel])


def _size(row: Mapping[str, Any]) -> int:
    """Channels a group; one group of all stands at the right end."""
    return ONE_GROUP if row["norm"] == "layer" else int(row["norm"].partition("size=")[2])


def similarity_panels(table: Rows) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Plain nets: for each set-up its norms with similarity at init and mean training accuracy."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for r in table:
        if str(r["net"]).startswith("plain") and r["seed"] == 0 and r.get("init.cosine_pooled") is not None:
            worst = max(float(r["init.cosine"]), float(r["init.cosine_pooled"]))
            title = f"{r['data'].split(':')[0]}, depth {r['depth']}, batch {r['batch_size']}, rate {r['lr']:g}"
            found.setdefault(title, []).append((r["norm"], worst, r["outcome.mean_accuracy"]))
    return [(k, v) for k, v in found.items() if len(v) > 5 and max(a for _, _, a in v) > 0.3]


def draw_similarity(table: Rows, path: Path) -> None:
    """Similarity at initialization against mean training accuracy."""
    panels = [
        Panel(
            title, "cosine at initialization", "mean training accuracy", {n: [(c, a)] for n, c, a in points}, dots=True
        )
        for title, points in similarity_panels(table)[:8]
    ]
    if panels:
        figures.write(path, panels)


# -- claims ----------------------------------------------------------------------------------------------------------

Claim = tuple[str, str, bool | None]


def claims(parts: Mapping[str, Rows]) -> list[tuple[Claim, str]]:
    """((what the paper says, our number, whether it held; None where there is too little to tell), scale)."""
    judges: tuple[tuple[str, Callable[[Rows], Iterable[Claim]]], ...] = (
        ("probes", _forward_claims),
        ("probes", _group_claims),
        ("curves", _curve_claims),
        ("curves-small", _curve_claims),
        ("groups", _trade_off_claims),
        ("study", _similarity_claims),
    )
    return [
        (claim, _scale_of(part, parts[part])) for part, judge in judges if parts[part] for claim in judge(parts[part])
    ]


def _scale_of(part: str, table: Rows) -> str:
    return {"probes": "width 64 and 32, 32 x 32, at initialization", "study": "width 8, 16 x 16, 200 steps, CPU"}.get(
        part
    ) or scale(table)


def _forward_claims(table: Rows) -> Iterable[Claim]:
    def factors(net: str, *names: str) -> dict[str, float]:
        found = {r["norm"]: series(r, "ms") for r in at(table, net=net)}
        return {n: (found[n][8] / found[n][1]) ** (1 / 7) for n in names if n in found}

    loose = factors("resnet56", "none", "weight", "sws")
    held = factors("resnet56", "batch", "layer", "instance", "group:size=8", "frn", "variance")
    if len(loose) + len(held) == 9:
        yield (
            "Without activation statistics the signal grows exponentially in a ResNet; with them at most linearly",
            f"per block of stage 1: {_list(loose)}; {_list(held)}",
            min(loose.values()) > 1.8 and max(held.values()) < 1.4,
        )
    cured = factors("resnet56:skipinit=true", "none", "sws", "batch", "weight")
    if len(cured) == 4:
        yield (
            "SkipInit removes the growth",
            f"per block: {_list(cured)}",
            all(abs(v - 1) < 0.01 for n, v in cured.items() if n != "weight") and cured["weight"] < 1.01,
        )


def _group_claims(table: Rows) -> Iterable[Claim]:
    sized = {
        SIZES.get(r["norm"], ONE_GROUP): r
        for r in at(table, net="cfg_20")
        if r["norm"] in SIZES or r["norm"] == "layer"
    }
    if len(sized) <= len(SIZES):
        return
    order = sorted(sized)
    rank = [series(sized[g], "rank")[-1] for g in order]
    cosine = [series(sized[g], "cosine")[-1] for g in order]
    ratio = [series(sized[g], "grad")[0] / series(sized[g], "grad")[-1] for g in order]
    yield (
        "Larger groups make samples more alike: similarity up, rank down",
        f"group 1 to all: cosine {cosine[0]:.2f} to {cosine[-1]:.2f}, stable rank {rank[0]:.2f} to {rank[-1]:.2f}",
        _falls(rank, 0.01) and _falls([-c for c in cosine], 0.005),
    )
    yield (
        "Smaller groups make gradients grow toward the input; InstanceNorm is worst",
        f"first over last layer, group 1 to all: {ratio[0]:.0f} to {ratio[-1]:.1f}",
        _falls(ratio, 0.05),
    )


def _curve_claims(table: Rows) -> Iterable[Claim]:
    size = max(r["batch_size"] for r in table)

    def accuracy(net: str, norm: str) -> float | None:
        found = [r for r in at(table, norm=norm, batch_size=size) if net_name(r) == net]
        return found[0]["outcome.mean_accuracy"] if found else None

    for net in ("cfg_10", "cfg_20"):
        layer, batch = accuracy(net, "layer"), accuracy(net, "batch")
        if layer is not None and batch is not None:
            yield (
                f"LayerNorm is slow ({net}, batch {size})",
                f"mean accuracy {layer:.2f} against BatchNorm {batch:.2f}",
                layer < batch - 0.02,
            )
    weight, cured = accuracy("resnet56", "weight"), accuracy("resnet56 with SkipInit", "weight")
    if weight is not None:
        text = f"mean accuracy {weight:.2f}" + (f"; with SkipInit {cured:.2f}" if cured is not None else "")
        yield "WeightNorm cannot be trained in a ResNet without SkipInit", text, weight < 0.15
    none, none_cured = accuracy("resnet56", "none"), accuracy("resnet56 with SkipInit", "none")
    if none is not None and none_cured is not None:
        yield (
            "SkipInit makes networks without norm trainable",
            f"mean accuracy {none:.2f} to {none_cured:.2f}",
            none < 0.2 < none_cured,
        )
    instance = accuracy("cfg_20", "instance")
    others = [a for n in ("batch", "layer", "group:size=8") if (a := accuracy("cfg_20", n)) is not None]
    if instance is not None and others:
        yield (
            "InstanceNorm is unstable in deep plain nets (cfg_20)",
            f"mean accuracy {instance:.2f} against {min(others):.2f} of the worst of BN, LN, GN",
            # where both stay at chance, which is lower is noise
            instance < min(others) if max(instance, min(others)) > 0.15 else None,
        )


def _trade_off_claims(table: Rows) -> Iterable[Claim]:
    best: dict[tuple[int, float], list[tuple[float, int]]] = {}
    for r in table:
        best.setdefault((r["batch_size"], r["lr"]), []).append((r["outcome.mean_accuracy"], _size(r)))
    sizes = {_size(r) for r in table}
    # where nothing gets clear of chance, the best size is noise
    full = {k: v for k, v in best.items() if len(v) == len(sizes) and max(v)[0] > 0.2}
    if full:
        chosen = {f"batch {b}, rate {lr:g}": max(v)[1] for (b, lr), v in sorted(full.items())}
        inside = [s for s in chosen.values() if min(sizes) < s < max(sizes)]
        yield (
            "GroupNorm trades speed against stability: an intermediate group size trains best",
            f"best size: {', '.join(f'{k}: {s}' for k, s in chosen.items())}",
            len(inside) > len(chosen) / 2,
        )


def _similarity_claims(table: Rows) -> Iterable[Claim]:
    values = [spearman([-c for _, c, _ in v], [a for _, _, a in v]) for _, v in similarity_panels(table) if len(v) > 5]
    known = [v for v in values if v is not None]
    if known:
        mean = sum(known) / len(known)
        yield (
            "The more similar samples are before the classifier, the slower a plain net trains",
            f"Spearman within set-ups {mean:.2f} (mean of {len(known)}, {min(known):.2f} to {max(known):.2f})",
            mean > 0.5,
        )


def _falls(values: Sequence[float], slack: float) -> bool:
    return all(b <= a * (1 + slack) + slack for a, b in pairwise(values))


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:.2f}" for k, v in values.items())


def claims_table(found: Sequence[tuple[Claim, str]]) -> str:
    """As Markdown."""
    words = {True: "yes", False: "**no**", None: "cannot tell"}
    lines = ["| the paper's claim | here | held | scale |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {claim} | {ours} | {words[held]} | {size} |" for (claim, ours, held), size in found)]
    )


DRAWINGS: tuple[tuple[str, str, Callable[[Rows, Path], None]], ...] = (
    ("probes", "depth", draw_probes),
    ("probes", "groups-at-init", draw_ranks),
    ("curves", "curves", draw_curves),
    ("curves-small", "curves-small", draw_curves),
    ("groups", "groups", draw_groups),
    ("study", "similarity", draw_similarity),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the trials that have no row yet")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--scale", choices=SCALES, default="all", help="small: the parts that a CPU runs in minutes")
    parser.add_argument("--limit", type=int, help="run at most this many trials of each part")
    parser.add_argument("--workers", type=int, help="trials at a time; as many as there are processors, if left out")
    parser.add_argument("--out", type=Path, help="keep rows, figures and claims there instead of beside the card")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    folder = args.out or HERE / "results"
    chosen = [args.only] if args.only else SCALES[args.scale]
    if args.run:
        for part in chosen:
            run(part, folder, args.limit, args.workers)
    tables = {part: rows(part, folder) for part in PARTS}
    for part, name, draw in DRAWINGS:
        if part in chosen and tables[part]:
            draw(tables[part], folder / f"{name}.svg")
    text = claims_table(claims(tables))
    if args.out is None:
        before, _, rest = CARD.read_text().partition(MARKS[0])
        CARD.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    elif folder.exists():
        (folder / "claims.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
