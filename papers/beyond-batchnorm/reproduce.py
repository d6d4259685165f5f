"""The paper's figures and claims, from the committed rows or by running what is missing.

    layerscope reproduce beyond-batchnorm                       # figures and claims from the committed rows: seconds
    layerscope reproduce beyond-batchnorm --run                 # first run every trial that has no row yet (resumable)
    layerscope reproduce beyond-batchnorm --run --only probes   # one part: probes, curves, groups or study

``--run`` keeps its rows in results/NAME.sqlite, takes the committed ones as done, can be interrupted and goes on when
called again. The curves want a GPU. Written: results/*.svg and the table of claims in README.md.
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
RESULTS = HERE / "results"
PARTS = {"probes": "probes", "curves": "curves", "groups": "groups", "study": "trials"}
MARKS = ("<!-- claims: written by reproduce.py -->", "<!-- end of claims -->")
Rows = list[dict[str, Any]]

SIZES = {
    "instance": 1,
    "group:size=2": 2,
    "group:size=4": 4,
    "group:size=8": 8,
    "group:size=16": 16,
    "group:size=32": 32,
}


def rows(part: str) -> Rows:
    """Finished rows of a part, flat: those of a local run if there is one, else the committed ones."""
    what = study.load(HERE / f"{part}.toml")
    local, committed = RESULTS / f"{part}.sqlite", RESULTS / f"{PARTS[part]}.jsonl.gz"
    source = local if local.exists() else committed
    return [r for r in study.flatten(rowfile.rows_of(source), what) if r["state"] == "done"] if source.exists() else []


def run(part: str) -> None:
    """Run what a part has no row for, and write its row file."""
    what = study.load(HERE / f"{part}.toml")
    store, committed = RESULTS / f"{part}.sqlite", RESULTS / f"{PARTS[part]}.jsonl.gz"
    if committed.exists():
        with study.Store(store, write=True) as kept:
            rowfile.merge(kept, rowfile.read(committed))
            done = study.standing(what, kept)
        if not done.left:
            return
    with study.Progress(len(what.trials)) as progress:
        study.run(what, study.local(), store=store, watch=progress)
    rowfile.write(rowfile.rows_of(store), committed)


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


def draw_curves(table: Rows) -> None:
    """Training accuracy over steps, a panel for each architecture."""
    nets = [n for n in ("cfg_10", "cfg_20", "resnet56", "resnet56:skipinit=true") if at(table, net=n)]
    panels = []
    for size in (256, 16):
        for net in nets:
            chosen = at(table, net=net, batch_size=size)
            lines = {r["norm"]: _points(series(r, "accuracy"), r["steps"] / 20) for r in chosen}
            if lines:
                panels.append(Panel(f"{net}, batch {size}", "step", "training accuracy", lines))
    if panels:
        figures.write(RESULTS / "curves.svg", panels, columns=len(nets))


def draw_probes(table: Rows) -> None:
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
    figures.write(RESULTS / "depth.svg", panels)
    grouped = [r for r in plain if r["norm"] in SIZES or r["norm"] == "layer"]
    figures.write(
        RESULTS / "groups-at-init.svg",
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


def draw_groups(table: Rows) -> None:
    """Mean training accuracy over the group size, for each batch size and learning rate."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in table:
        size = {"layer": 512}.get(r["norm"]) or int(r["norm"].partition("size=")[2])
        lines.setdefault(f"batch {r['batch_size']}, rate {r['lr']:g}", []).append((size, r["outcome.mean_accuracy"]))
    if lines:
        panel = Panel(
            "GroupNorm in cfg_20",
            "channels a group (512: one group)",
            "mean training accuracy",
            {k: sorted(v) for k, v in sorted(lines.items())},
            log_x=True,
        )
        figures.write(RESULTS / "groups.svg", [panel])


def similarity_panels(table: Rows) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Plain nets: for each set-up its norms with similarity at init and mean training accuracy."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for r in table:
        if str(r["net"]).startswith("plain") and r["seed"] == 0 and r.get("init.cosine_pooled") is not None:
            worst = max(float(r["init.cosine"]), float(r["init.cosine_pooled"]))
            title = f"{r['data'].split(':')[0]}, depth {r['depth']}, batch {r['batch_size']}, rate {r['lr']:g}"
            found.setdefault(title, []).append((r["norm"], worst, r["outcome.mean_accuracy"]))
    return [(k, v) for k, v in found.items() if len(v) > 5 and max(a for _, _, a in v) > 0.3]


def draw_similarity(table: Rows) -> None:
    """Similarity at initialization against mean training accuracy."""
    panels = [
        Panel(
            title, "cosine at initialization", "mean training accuracy", {n: [(c, a)] for n, c, a in points}, dots=True
        )
        for title, points in similarity_panels(table)[:8]
    ]
    if panels:
        figures.write(RESULTS / "similarity.svg", panels)


# -- claims ----------------------------------------------------------------------------------------------------------

Claim = tuple[str, str, bool | None]


def claims(parts: Mapping[str, Rows]) -> list[Claim]:
    """(what the paper says, our number, whether it held); None where there is too little to tell."""
    return [
        *_forward_claims(parts["probes"]),
        *_group_claims(parts["probes"]),
        *_curve_claims(parts["curves"]),
        *_trade_off_claims(parts["groups"]),
        *_similarity_claims(parts["study"]),
    ]


def _forward_claims(table: Rows) -> Iterable[Claim]:
    def factor(norm: str, net: str) -> float:
        ms = series(at(table, net=net, norm=norm)[0], "ms")
        return (ms[8] / ms[1]) ** (1 / 7)

    if not table:
        return
    loose = {n: factor(n, "resnet56") for n in ("none", "weight", "sws")}
    held = {n: factor(n, "resnet56") for n in ("batch", "layer", "instance", "group:size=8", "frn", "variance")}
    yield (
        "Without activation statistics the signal grows exponentially in a ResNet; with them at most linearly",
        f"per block of stage 1: {_list(loose)}; {_list(held)}",
        min(loose.values()) > 1.8 and max(held.values()) < 1.4,
    )
    cured = {n: factor(n, "resnet56:skipinit=true") for n in ("none", "sws", "batch", "weight")}
    yield (
        "SkipInit removes the growth",
        f"per block: {_list(cured)}",
        all(abs(v - 1) < 0.01 for n, v in cured.items() if n != "weight") and cured["weight"] < 1.01,
    )


def _group_claims(table: Rows) -> Iterable[Claim]:
    sized = {
        SIZES.get(r["norm"], 512): r for r in at(table, net="cfg_20") if r["norm"] in SIZES or r["norm"] == "layer"
    }
    if not sized:
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
    def accuracy(net: str, norm: str, size: int = 256) -> float | None:
        found = at(table, net=net, norm=norm, batch_size=size)
        return found[0]["outcome.mean_accuracy"] if found else None

    for net in ("cfg_10", "cfg_20"):
        layer, batch = accuracy(net, "layer"), accuracy(net, "batch")
        if layer is not None and batch is not None:
            yield (
                f"LayerNorm is slow ({net}, batch 256)",
                f"mean accuracy {layer:.2f} against BatchNorm {batch:.2f}",
                layer < batch - 0.02,
            )
    weight, cured = accuracy("resnet56", "weight"), accuracy("resnet56:skipinit=true", "weight")
    if weight is not None:
        text = f"mean accuracy {weight:.2f}" + (f"; with SkipInit {cured:.2f}" if cured is not None else "")
        yield "WeightNorm cannot be trained in a ResNet without SkipInit", text, weight < 0.15
    none, none_cured = accuracy("resnet56", "none"), accuracy("resnet56:skipinit=true", "none")
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
            instance < min(others),
        )


def _trade_off_claims(table: Rows) -> Iterable[Claim]:
    best: dict[tuple[int, float], list[tuple[float, int]]] = {}
    for r in table:
        size = {"layer": 512}.get(r["norm"]) or int(r["norm"].partition("size=")[2])
        best.setdefault((r["batch_size"], r["lr"]), []).append((r["outcome.mean_accuracy"], size))
    # where nothing gets clear of chance, the best size is noise
    full = {k: v for k, v in best.items() if len(v) == 7 and max(v)[0] > 0.2}
    if full:
        chosen = {f"batch {b}, rate {lr:g}": max(v)[1] for (b, lr), v in sorted(full.items())}
        inside = [s for s in chosen.values() if s not in (1, 512)]
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


def claims_table(found: Sequence[Claim]) -> str:
    """As Markdown."""
    words = {True: "yes", False: "**no**", None: "not enough rows"}
    lines = ["| the paper's claim | here | held |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {claim} | {ours} | {words[held]} |" for claim, ours, held in found)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the trials that have no row yet")
    parser.add_argument("--only", choices=PARTS, help="one part")
    args = parser.parse_args()
    chosen = [args.only] if args.only else list(PARTS)
    if args.run:
        for part in chosen:
            run(part)
    drawings: dict[str, Callable[[Rows], None]] = {
        "probes": draw_probes,
        "curves": draw_curves,
        "groups": draw_groups,
        "study": draw_similarity,
    }
    tables = {part: rows(part) for part in PARTS}
    for part in chosen:
        if tables[part]:
            drawings[part](tables[part])
    text = claims_table(claims(tables))
    card = HERE / "README.md"
    before, _, rest = card.read_text().partition(MARKS[0])
    if rest:
        card.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(text)


if __name__ == "__main__":
    main()
