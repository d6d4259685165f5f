"""The trade-off in the group size: speed (samples stay apart) against stability (gradients stay level).

Larger groups keep the gradient level and let samples become alike; smaller ones do the opposite (Lubana, Dick, Tanaka,
arXiv 2106.05956). Drawn when at least two choices differ in nothing but the group size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from layerscope.errors import SpecError
from layerscope.probe.records import Profile
from layerscope.report import numbers
from layerscope.report.charts.panels import View, figure
from layerscope.report.charts.scatter import Point, scatter
from layerscope.report.limits import informative_guides
from layerscope.report.looks import LABEL_LOOKS
from layerscope.report.markup import Html
from layerscope.spec import parse_spec
from layerscope.verdict.trunk import trunk
from layerscope.verdict.types import Choice

#: Norms that are group norms under another name, with their group size.
_ENDS: dict[str, float] = {"instance": 1.0, "layer": float("inf")}


@dataclass(frozen=True)
class _Place:
    choice: Choice
    gradient: float
    last_map: float | None
    readout: float | None


def frontier(choices: Sequence[Choice]) -> Html:
    """The picture, or nothing where fewer than two group sizes were compared."""
    if not any(group_size(c.norm) is not None and c.norm not in _ENDS for c in choices):
        return Html("")
    places = [p for p in map(_place, choices) if p is not None]
    views = [
        view
        for view in (
            _view(places, "at the last map", "before pooling", lambda p: p.last_map),
            _view(places, "at the classifier input", "after pooling", lambda p: p.readout),
        )
        if view
    ]
    if not views:
        return Html("")
    return figure(
        "The trade-off in the group size",
        views,
        "Good: the lower left corner, where samples stay apart and the gradient stays level. Along the line the group "
        "size grows: small groups stand to the right (gradients grow toward the input), large ones at the top (samples "
        "look alike). Take the smallest group whose gradient your learning rate can bear.",
        question="What does a larger group cost, and what does it buy?",
    )


def group_size(norm: str) -> float | None:
    """Channels per group that a spec asks for: 1 for instance, infinity for layer; None where it fixes no size."""
    try:
        spec = parse_spec(norm)
    except SpecError:
        return None
    if spec.name in _ENDS and not spec.params:
        return _ENDS[spec.name]
    size = spec.kwargs.get("size")
    if spec.name == "group" and len(spec.params) == 1 and isinstance(size, int):
        return float(size)
    return None


def _place(choice: Choice) -> _Place | None:
    ratios = [r for r in map(_gradient_ratio, choice.profiles) if r is not None]
    if not ratios:
        return None
    last = [p.readout_cosine_unpooled for p in choice.profiles if p.readout_cosine_unpooled is not None]
    pooled = [p.readout_cosine for p in choice.profiles if p.readout_cosine is not None]
    return _Place(choice, median(ratios), median(last) if last else None, median(pooled) if pooled else None)


def _gradient_ratio(profile: Profile) -> float | None:
    along = [r.grad_scaled for r in trunk(profile).backward if r.grad_scaled]
    return along[0] / along[-1] if len(along) > 1 else None


def _view(places: Sequence[_Place], name: str, place: str, pick: Callable[[_Place], float | None]) -> View | None:
    shown = [(p, cosine) for p in places if (cosine := pick(p)) is not None]
    sized = [(group_size(p.choice.norm), k) for k, (p, _) in enumerate(shown)]
    path = [k for _, k in sorted((g, k) for g, k in sized if g is not None)]
    if len(path) < 2:
        return None
    points = [
        Point(
            p.choice.norm,
            p.gradient,
            cosine,
            LABEL_LOOKS[p.choice.verdict.label].tone,
            LABEL_LOOKS[p.choice.verdict.label],
        )
        for p, cosine in shown
    ]
    picture = scatter(
        points,
        x_kind="log",
        y_kind="nines",
        x_title="gradient, first layer over last",
        y_title=f"cosine between samples {name}",
        path=path,
        y_guides=informative_guides([p.choice.profiles[0] for p in places], at_end=True),
        write_x=numbers.times,
        write_y=numbers.cosine,
    )
    return View(name, f"cosine between samples {place}", *picture)
