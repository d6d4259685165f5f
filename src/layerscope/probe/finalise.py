"""From what the hooks kept to plain numbers: one copy to the host, then float64."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.probe.recorder import Trace
from layerscope.probe.records import LayerRecord
from layerscope.probe.reducers import Reduced, host
from layerscope.probe.summary import COLUMNS, Side, summarise
from layerscope.quantities import health, rank, similarity
from layerscope.quantities.moments import Tables, batch_normalized

#: A variance with a larger relative error than this is read again.
MAX_ROUNDING = 1e-3


@dataclass(frozen=True)
class Site:
    """The numbers of one call site in one chunk."""

    trace: Trace
    values: dict[str, float] = field(hash=False)

    @property
    def is_unclear(self) -> bool:
        """Whether sums in the network's precision could not resolve the variance, or ran over."""
        values = self.values
        overflow = values["nonfinite_share"] == 0 and not math.isfinite(values.get("ms", 0.0))
        return overflow or values.get("rounding", 0.0) > MAX_ROUNDING

    def corrected(self, other: Site) -> Site:
        """This site with the numbers of a second look at its forward values."""
        values = {**self.values, **other.values, "rounding": 0.0}
        _scale_gradient(values)
        return Site(self.trace, values)


def finalise(traces: Sequence[Trace]) -> list[Site]:
    """One :class:`Site` per trace, in order."""
    unique = {id(t.kept): t.kept for t in traces}
    numbers: dict[int, dict[str, float]] = {key: {} for key in unique}
    _tables(traces, unique, numbers)
    _cosines(unique, numbers)
    _grams(unique, numbers)
    for key, kept in unique.items():
        if kept.sketch is not None:
            numbers[key]["zero_share"] = float(health.zero_share(kept.sketch))
        if kept.absmax is not None:
            numbers[key]["absmax"] = float(kept.absmax)
    grads = host([t.grad[0] for t in traces if t.grad])
    sites = []
    for trace in traces:
        values = dict(numbers[id(trace.kept)])
        if trace.grad:
            values["grad_norm"] = math.sqrt(next(grads))
            _scale_gradient(values)
        if (
            values["nonfinite_share"] == 0
        ):  # then a NaN says that there is nothing to measure, such as one living sample
            values = {name: value for name, value in values.items() if not math.isnan(value)}
        sites.append(Site(trace, values))
    return sites


def _tables(traces: Sequence[Trace], unique: dict[int, Reduced], numbers: dict[int, dict[str, float]]) -> None:
    groups: dict[tuple[int, torch.dtype, bool], tuple[list[int], list[Side]]] = defaultdict(lambda: ([], []))
    read = [([key], Side(t, (t.sums.shape[1],))) for key, kept in unique.items() if (t := kept.tables) is not None]
    for sites, side in (*read, *_normalized(traces)):
        keys, sides = groups[len(side.tables.sums), side.tables.sums.dtype, side.tables.positions == 1]
        keys.extend(sites)
        sides.append(side)
    rows = [(keys, summarise(sides)) for keys, sides in groups.values()]
    done = [(key, kept.summary) for key, kept in unique.items() if kept.summary is not None]
    if done:
        rows.append(([key for key, _ in done], torch.stack([row for _, row in done])))
    for keys, table in rows:
        for key, values in zip(keys, table.tolist(), strict=True):
            numbers[key].update(zip(COLUMNS, values, strict=True))


def _normalized(traces: Sequence[Trace]) -> Iterator[tuple[list[int], Side]]:
    """Tables of batch norm outputs that were not read, from their inputs' tables."""
    groups: dict[tuple[int, int, torch.dtype, float, bool], list[tuple[int, Tables, nn.Module]]] = defaultdict(list)
    for trace in traces:
        source, module = trace.kept.normalizes, trace.module
        if source is not None and source.tables is not None and isinstance(module, _BatchNorm):
            sums = source.tables.sums
            key = len(sums), source.positions, sums.dtype, module.eps, module.affine
            groups[key].append((id(trace.kept), source.tables, module))
    for (_, positions, _, eps, affine), group in groups.items():
        weight, bias = (
            (torch.cat([getattr(m, name).detach() for _, _, m in group]) if affine else None)
            for name in ("weight", "bias")
        )
        sums, norms = torch.cat([t.sums for _, t, _ in group], 1), torch.cat([t.norms for _, t, _ in group], 1)
        done = batch_normalized(Tables(sums, norms, positions), weight, bias, eps)
        yield [key for key, _, _ in group], Side(done, tuple(t.sums.shape[1] for _, t, _ in group))


def _cosines(unique: dict[int, Reduced], numbers: dict[int, dict[str, float]]) -> None:
    with_cosine = [(k, r.resultant) for k, r in unique.items() if r.resultant is not None]
    for (key, _), square in zip(with_cosine, host([r for _, r in with_cosine]), strict=True):
        n = unique[key].samples - numbers[key]["dead_samples"]
        numbers[key]["cosine"] = (square - n) / (n * (n - 1)) if n > 1 else math.nan
    with_tokens = [(k, r.tokens) for k, r in unique.items() if r.tokens is not None]
    for key, tokens in with_tokens:
        per_sample = similarity.cosine_from_resultant(tokens[0], tokens[1])
        numbers[key]["cosine_token"] = float(per_sample.nanmean())


def _grams(unique: dict[int, Reduced], numbers: dict[int, dict[str, float]]) -> None:
    by_size: dict[int, list[int]] = defaultdict(list)
    for key, kept in unique.items():
        if kept.gram is not None:
            by_size[len(kept.gram)].append(key)
    for keys in by_size.values():
        m = similarity.normalized_gram(torch.stack([g for k in keys if (g := unique[k].gram) is not None]).cpu())
        spectrum = rank.eigenvalues(m)
        centred = rank.eigenvalues(rank.centred_gram(m))
        for key, total, trace in zip(
            keys, m.sum((-2, -1)).tolist(), m.diagonal(dim1=-2, dim2=-1).sum(-1).tolist(), strict=True
        ):
            if unique[key].resultant is None:
                numbers[key]["cosine"] = (total - trace) / (trace * (trace - 1)) if trace > 1 else math.nan
        columns = (
            ("stable_rank", rank.stable_rank(spectrum)),
            ("participation_ratio", rank.participation_ratio(m)),
            ("effective_rank", rank.effective_rank(spectrum)),
            ("effective_rank_centred", rank.effective_rank(centred)),
        )
        for name, column in columns:
            for key, value in zip(keys, column.tolist(), strict=True):
                numbers[key][name] = value


def _scale_gradient(values: dict[str, float]) -> None:
    if "grad_norm" in values and "ms" in values:
        values["grad_scaled"] = values["grad_norm"] * math.sqrt(values["ms"]) if values["ms"] >= 0 else math.nan


def average(
    chunks: Sequence[Sequence[Site]], weights: dict[int, tuple[float, float | None]]
) -> tuple[LayerRecord, ...]:
    """One record per call site of the first chunk; numbers are means over chunks, extremes and counts are not.

    Args:
        chunks: the sites of every chunk.
        weights: ``id(module)`` -> norm of its weight and of the weight's gradient.
    """
    by_name = [{site.trace.name: site.values for site in sites} for sites in chunks]
    records = []
    for index, site in enumerate(chunks[0]):
        trace = site.trace
        values = _merge([names[trace.name] for names in by_name if trace.name in names])
        weight, weight_grad = weights.get(id(trace.module), (None, None))
        inside = trace.block if trace.role in ("norm", "activation") else None
        records.append(
            LayerRecord(
                index=index,
                name=trace.name,
                kind=trace.kind,
                role=trace.role,
                layout=trace.kept.layout,
                shape=trace.shape,
                feeds=inside,
                residual=trace.residual,
                dead_samples=int(values["dead_samples"]),
                weight_norm=weight,
                weight_grad=weight_grad,
                nonfinite_share=values["nonfinite_share"],
                **{name: values.get(name) for name in _MEASURED},
            )
        )
    return tuple(records)


_MEASURED = (
    "variance",
    "std",
    "ms",
    "mean",
    "absmax",
    "cosine",
    "cosine_pooled",
    "cosine_token",
    "stable_rank",
    "participation_ratio",
    "effective_rank",
    "effective_rank_centred",
    "dead_share",
    "zero_share",
    "grad_norm",
    "grad_scaled",
)


def _merge(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    if len(parts) == 1:
        return parts[0]
    merged = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        seen = [part[name] for part in parts if name in part]
        merged[name] = sum(seen) / len(seen)
    merged["dead_samples"] = sum(p["dead_samples"] for p in parts)
    if "absmax" in merged:
        merged["absmax"] = max(p["absmax"] for p in parts)
    return merged
