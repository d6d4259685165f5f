"""Plain stacks of conv - norm - ReLU layers, many at once: correlations and gradient factors from the input upward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.kernels import CENTRED_COSINE
from layerscope.theory.laws import Law
from layerscope.theory.padding import NO_BORDER, Border, border, kept_by_layer
from layerscope.theory.sets import LARGE, Across, ChannelSets, Layer, SampleSets, Step
from layerscope.theory.shared_sets import SharedSets
from layerscope.theory.small_sets import SmallSets
from layerscope.theory.weight_layers import Features, weight_layer

Floats = NDArray[np.float64]

#: On maps of more positions a pattern of positions has so many degrees of freedom that its variance is the same in all
#: channels.
STAMPED = 64

#: Configurations that run together; their arrays then stay in the processor's cache.
BLOCK = 16


@dataclass(frozen=True)
class Stack:
    """One plain stack: its law and the sizes of its statistic sets, layer by layer."""

    law: Law
    units: tuple[int, ...]
    positions: tuple[int, ...]
    padded: bool
    input_cosine: float

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(units, positions) of every layer."""
        return tuple(zip(self.units, self.positions, strict=True))


@dataclass(frozen=True)
class Path:
    """What the recursion says of one stack, one entry for each layer."""

    b: tuple[float, ...]
    """Cosine of the features of two samples at one position."""
    d: tuple[float, ...]
    """The same at two positions."""
    a: tuple[float, ...]
    """Cosine of the features of one sample at two positions."""
    q: tuple[float, ...]
    """Second moment of the features, for an input of unit second moment."""
    gain: tuple[float, ...]
    """Factor on (gradient norm x rms)^2 from the next layer's convolution output to this one's."""
    gain_raw: tuple[float, ...]
    """Factor on the squared gradient norm alone."""


def run(stacks: Sequence[Stack], seed: int = 0) -> list[Path]:
    """The paths of many stacks; a stack that begins like a longer one is read off from it."""
    order = sorted(set(stacks), key=_sort_key)
    longest: dict[Stack, Stack] = {}
    kept: list[Stack] = []
    for stack in reversed(order):
        if kept and _begins(stack, kept[-1]):
            longest[stack] = kept[-1]
        else:
            kept.append(stack)
    paths: dict[Stack, Path] = {}
    for block in _blocks(kept):
        paths.update(zip(block, _run_block(block, seed), strict=True))
    return [paths[s] if s in paths else _cut(paths[longest[s]], len(s.units)) for s in stacks]


def _sort_key(stack: Stack) -> tuple[str, bool, float, tuple[tuple[int, int], ...]]:
    return (repr(stack.law), stack.padded, stack.input_cosine, stack.sizes)


def _begins(short: Stack, long: Stack) -> bool:
    same = short.law == long.law and short.padded == long.padded and short.input_cosine == long.input_cosine
    return same and short.sizes == long.sizes[: len(short.sizes)]


def _cut(path: Path, depth: int) -> Path:
    return Path(
        path.b[:depth], path.d[:depth], path.a[:depth], path.q[:depth], path.gain[:depth], path.gain_raw[:depth]
    )


def _blocks(stacks: list[Stack]) -> list[list[Stack]]:
    """Stacks of one family together, those of like depth side by side."""
    families: dict[object, list[Stack]] = {}
    for stack in stacks:
        families.setdefault((stack.law.family, stack.law.filters_centred), []).append(stack)
    blocks = []
    for members in families.values():
        members.sort(key=lambda s: len(s.units))
        blocks += [members[i : i + BLOCK] for i in range(0, len(members), BLOCK)]
    return blocks


def _run_block(stacks: list[Stack], seed: int) -> list[Path]:
    depth = max(len(s.units) for s in stacks)
    trail = _weights(stacks, depth) if stacks[0].law.family == "weights" else _norms(stacks, depth, seed)
    paths = []
    for row, stack in enumerate(stacks):
        columns = [tuple(float(v[row, 0]) for v in series[: len(stack.units)]) for series in trail]
        paths.append(Path(*columns))
    return paths


def _weights(stacks: list[Stack], depth: int) -> tuple[list[Floats], ...]:
    borders = _borders(stacks, depth)
    kept = np.ones((depth, len(stacks), 1))
    for row, stack in enumerate(stacks):
        if sides := _sides(stack, depth):
            kept[:, row, 0] = kept_by_layer(sides)
    fade, leak, leak_apart = (_series(borders, name) for name in ("fade", "leak", "leak_apart"))
    cosine = _column(s.input_cosine for s in stacks)
    one = np.ones((1, 1))
    trail: list[tuple[list[Features], list[Floats]]] = []
    for row, stack in enumerate(stacks):
        c, here = cosine[row : row + 1], slice(row, row + 1)
        states, factors = [Features(one, 0.0 * one, c, c, c, one)], []
        for layer in range(depth):
            border = (kept[layer][here], fade[layer][here], leak[layer][here], leak_apart[layer][here])
            after, factor = weight_layer(stack.law.weights, states[-1], *border)
            states.append(after)
            factors.append(factor)
        trail.append((states[1:], factors))
    out: tuple[list[Floats], ...] = ([], [], [], [], [], [])
    for layer in range(depth):
        following = min(layer + 1, depth - 1)
        now, nxt = ([states[k] for states, _ in trail] for k in (layer, following))
        raw = np.concatenate([factors[following] for _, factors in trail])
        shrink = np.concatenate([n.t / m.t for n, m in zip(now, nxt, strict=True)])
        features = (np.concatenate([getattr(n, k) for n in now]) for k in "bdaq")
        for series, value in zip(out, (*features, raw * shrink, raw), strict=True):
            series.append(value)
    return out


def _norms(stacks: list[Stack], depth: int, seed: int) -> tuple[list[Floats], ...]:
    a = b = d = _column(s.input_cosine for s in stacks)
    q_before = np.full((len(stacks), 1), 0.5)
    fade = _series(_borders(stacks, depth), "fade")
    centred_filters = stacks[0].law.filters_centred
    restored = 1.0 - CENTRED_COSINE if centred_filters else 1.0
    out: tuple[list[Floats], ...] = ([], [], [], [], [], [])
    sizes: list[tuple[int, int]] = []
    layer_map: Layer | None = None
    for layer in range(depth):
        now = [s.sizes[min(layer, len(s.sizes) - 1)] for s in stacks]
        if layer_map is None or now != sizes:
            layer_map, sizes = build_layer([s.law for s in stacks], now, seed, [s.padded for s in stacks]), now
        if centred_filters and layer:
            a, b, d = (np.maximum((r - CENTRED_COSINE) / (1.0 - CENTRED_COSINE), 0.0) for r in (a, b, d))
        a, d = fade[layer] * a, np.clip(fade[layer] * d, 0.0, 1.0)
        step = layer_map.step(a, np.clip(b, 0.0, 1.0), d)
        gains = step.gain / (step.q * restored), step.gain / (q_before * restored)
        for series, value in zip(out, (step.b, step.d, step.a, step.q, *gains), strict=True):
            series.append(value)
        a, b, d, q_before = step.a, step.b, step.d, step.q
    return out


def build_layer(
    laws: Sequence[Law], sizes: Sequence[tuple[int, int]], seed: int, padded: Sequence[bool] | None = None
) -> Layer:
    """One normalized ReLU layer of K configurations of one family; ``padded``: maps whose border stamps a pattern."""
    family = laws[0].family
    units = np.array([u for u, _ in sizes], dtype=np.int64)
    positions = np.array([1 if family == "point" else s for _, s in sizes], dtype=np.int64)
    centred = np.array([law.centred for law in laws])
    small = (units * positions < LARGE) & (centred | (family != "samples"))
    stamped = np.zeros(len(laws), dtype=bool)
    if family == "samples" and padded is not None:
        stamped = np.array(padded) & ~centred & (positions > 1) & (positions <= STAMPED)
    kind = SampleSets if family == "samples" else ChannelSets
    parts: list[tuple[NDArray[np.int64], Layer]] = [
        (np.array([row]), SharedSets(int(units[row]), int(positions[row]), seed)) for row in np.flatnonzero(stamped)
    ]
    rows = np.flatnonzero(~small & ~stamped)
    if len(rows):
        parts.append((rows, kind(units[rows], positions[rows], centred[rows], seed)))
    for row in np.flatnonzero(small):
        across: Across = "samples" if family == "samples" else "channels"
        sets = SmallSets(across, int(units[row]), int(positions[row]), bool(centred[row]), seed)
        parts.append((np.array([row]), sets))
    layer: Layer = parts[0][1] if len(parts) == 1 else _Parts(parts, len(units))
    return _Pointwise(layer) if family == "point" else layer


class _Parts:
    """Large sets together, small ones each by itself."""

    def __init__(self, parts: list[tuple[NDArray[np.int64], Layer]], count: int) -> None:
        self._parts, self._count = parts, count

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer of all configurations."""
        out = Step(*(np.empty((self._count, 1)) for _ in range(5)))
        for rows, layer in self._parts:
            part = layer.step(a[rows], b[rows], d[rows])
            out.q[rows], out.a[rows], out.b[rows], out.d[rows], out.gain[rows] = (
                part.q,
                part.a,
                part.b,
                part.d,
                part.gain,
            )
        return out


class _Pointwise:
    """Statistics of one position each: any two elements at different places meet the norm as two samples do."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer of all configurations."""
        own, within, apart = (self._layer.step(a, r, r) for r in (b, np.clip(a, 0.0, 1.0), d))
        return Step(own.q, within.b, own.b, apart.b, own.gain)


def _borders(stacks: list[Stack], depth: int) -> list[list[Border]]:
    """Indexed by layer and stack."""
    borders = [[NO_BORDER] * len(stacks) for _ in range(depth)]
    for row, stack in enumerate(stacks):
        sides = _sides(stack, depth)
        for layer, (before, side) in enumerate(zip(sides[:1] + sides, sides, strict=False)):
            borders[layer][row] = border(side, before)
    return borders


def _sides(stack: Stack, depth: int) -> list[int]:
    """Map sides of a zero-padded stack, the last one repeated up to ``depth``; none where nothing is padded."""
    if not stack.padded or stack.positions[0] == 1:
        return []
    sides = [max(1, round(math.sqrt(s))) for s in stack.positions]
    return sides + sides[-1:] * (depth - len(sides))


def _series(borders: list[list[Border]], name: str) -> list[Floats]:
    return [_column(getattr(b, name) for b in layer) for layer in borders]


def _column(values: Iterable[float]) -> Floats:
    return np.array(list(values), dtype=np.float64).reshape(-1, 1)
