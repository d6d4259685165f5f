"""The committed rows as Markdown: mean over seeds, and half the range."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SETTINGS = ("family", "pool", "data", "epochs", "batch", "images")
COLUMNS = (
    "hidden units", "seeds", "rate", "accuracy %", "one pass", "ECE %", "NLL", "random gain", "turned", "permuted",
    "other data",
)  # fmt: skip

#: Number of seeds -> the 97.5 % quantile of Student's t, one degree of freedom less.
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}


def tables(rows: list[Row]) -> str:
    """Every finished trial.

    A kind was trained at several learning rates; shown is the one with the better mean accuracy on the held-back
    training images.
    """
    lines: list[str] = []
    for group, some in sorted(_by(rows, SETTINGS).items(), key=str):
        family, pool, name, epochs, batch, images = group
        halved = "strides instead of pooling" if pool == "stride" else f"{pool} pooling"
        shape = f"cnn, {halved}" if family == "cnn" else "mlp"
        device, passes, tested = (some[0][k] for k in ("device", "passes", "test_images"))
        lines += [f"### {shape}, {name}{f' ({images} images)' if images else ''}, {epochs} epochs, batch {batch}", ""]
        lines += [
            f"{tested} test images, {passes} passes for stochastic networks, trained on {device}.{_recipe(some)}",
            "",
        ]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        chosen = {kind: best(r) for kind, r in _by(some, ("kind", "target", "copies")).items()}
        for (kind, target, copies), r in chosen.items():
            lines.append(_line(label(kind, target, copies, some), r))
        for (kind, target, copies), r in chosen.items():
            if kind == "nsm":
                lines += ["", *_details(label(kind, target, copies, some), r)]
        lines += ["", *_gap(chosen), ""]
    if (file := Path(__file__).parent / "results" / "percentiles.json").exists():
        lines += ["### Pre-activations of the last hidden layer over 300 steps", ""]
        lines += ["| network, learning rate | spread, last over first | largest drift of the median |", "|---|---|---|"]
        for key, value in json.loads(file.read_text()).items():
            lines.append(f"| {key} | {value['spread_last_over_first']} | {value['median_drift']} |")
    return "\n".join(lines).rstrip() + "\n"


def _recipe(rows: list[Row]) -> str:
    """How sampling networks were trained, where it was the same for all of them."""
    found = {(r["target"], r["copies"], r.get("centred", False)) for r in rows if r["kind"] == "nsm"}
    if len(found) != 1:
        return ""
    ((target, copies, centred),) = found
    how = ", inputs counted from their mean" if centred else ""
    return f" Sampling networks: spread {target:g}, samples of an image in a step {copies}{how}."


def best(rows: list[Row]) -> list[Row]:
    """The rows of the learning rate that does best on the held-back images, among those with the most seeds."""
    rates = _by(rows, ("lr",)).values()
    most = max(map(len, rates))
    return max((r for r in rates if len(r) == most), key=_held_back)


def _held_back(rows: list[Row]) -> float:
    return statistics.mean(r.get("accuracy_held_back", 0.0) for r in rows)


def label(kind: str, target: float, copies: int, among: list[Row]) -> str:
    """The kind, and the settings of sampling networks where several were tried."""
    if not kind.startswith(("nsm", "sign, erf")):
        return kind
    tried = {(r["target"], r["copies"]) for r in among if r["kind"] == kind}
    return kind if len(tried) == 1 else f"{kind} (target {target:g}, {copies} samples a step)"


def spread(values: list[float], digits: int) -> str:
    """Mean, and half the range over seeds."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f}" + (f" ±{half:.{digits}f}" if len(values) > 1 else "")


def _line(name: str, rows: list[Row]) -> str:
    def cell(get: Any, digits: int) -> str:
        values = [v for r in rows if (v := get(r)) is not None]
        return spread(values, digits) if values else ""

    def percent(key: str) -> str:
        return cell(lambda r: 100 * r[key] if key in r else None, 1)

    cells = [percent(k) for k in ("accuracy", "accuracy_one_pass", "ece")]
    cells += [cell(lambda r: r.get("nll"), 3), percent("accuracy_random_gain")]
    cells += [cell(lambda r, k=k: r["auroc"].get(k), 2) for k in ("rotated", "permuted", "other")]
    return f"| {name} | {len(rows)} | {rows[0]['lr']:g} | " + " | ".join(cells) + " |"


def _details(name: str, rows: list[Row]) -> list[str]:
    bits = [f"{b} bits {spread([100 * r['bits'][b] for r in rows], 1)}" for b in rows[0]["bits"]]
    angles = zip(*(r["entropy_by_angle"] for r in rows), strict=True)
    turned = ", ".join(f"{statistics.mean(values):.2f}" for values in angles)
    passes = [
        f"{s}: {spread([100 * r['by_passes'][s]['accuracy'] for r in rows], 1)} / "
        f"{spread([100 * r['by_passes'][s]['ece'] for r in rows], 1)} / "
        f"{spread([r['by_passes'][s]['nll'] for r in rows], 3)}"
        for s in rows[0].get("by_passes", ())
    ]
    if not passes:
        return [f"{name}, fixed-point weights, accuracy % at 10 passes: {', '.join(bits)}."]
    return [
        f"{name}, fixed-point weights, accuracy % at 10 passes: {', '.join(bits)}.",
        "",
        f"{name}, accuracy % / ECE % / NLL by number of passes: {'; '.join(passes)}.",
        "",
        f"{name}, predictive entropy (nats) of inputs turned by 0, 30, ..., 180 degrees: {turned}.",
    ]


def _gap(chosen: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    """How far sampling networks are from the batch norm, seed by seed: mean, and the 95 % interval of Student's t."""
    norm = next((r for (kind, *_), r in chosen.items() if kind == "relu, batch norm"), None)
    lines = []
    for kind in ("nsm", "nsm, ordinary first layer"):
        ours = [r for (k, *_), r in chosen.items() if k == kind]
        if norm is None or not ours:
            continue
        theirs = {r["seed"]: r["accuracy"] for r in norm}
        top = max(ours, key=_held_back)
        gaps = [100 * (theirs[r["seed"]] - r["accuracy"]) for r in top if r["seed"] in theirs]
        if gaps:
            lines += [f"{kind} is {_interval(gaps)} points below relu, batch norm.", ""]
    return lines[:-1]


def _interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) not in STUDENT:
        return f"{mean:.1f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ({mean - half:.1f} to {mean + half:.1f})"


def _by(rows: list[Row], keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[k] for k in keys)].append(row)
    return dict(found)
