"""Colours as CSS variables, for light and dark paper; nothing here tells red from green.

Two hues carry meaning: blue (shrinking, or a good verdict) and orange (growing, or a bad one); the strength of a
heat-map colour grows away from the paper in both modes, so that *faint is quiet and strong is loud*. Mixing is done in
OKLab (B. Ottosson, 2020), where equal steps look equal.
"""

from __future__ import annotations

#: Steps of the heat map on each side of the middle.
STEPS = 12

_LIGHT = {
    "paper": "#fffefb", "raise": "#f8f6f0", "ink": "#1d1f23", "soft": "#5d6169", "faint": "#72757c", "hair": "#e6e2d9",
    "healthy": "#1c66b0", "slow": "#966b00", "very-slow": "#7a4e06", "unstable": "#bf4a06", "fails": "#8e1f0f",
    "unknown": "#6d7077",
    "k0": "#1c66b0", "k1": "#d4570d", "k2": "#1f8a84", "k3": "#9c4f96", "k4": "#b98900", "k5": "#4b5563",
    "k6": "#5aa9e6", "k7": "#8e1f0f",
}  # fmt: skip
_DARK = {
    "paper": "#15171b", "raise": "#1d2025", "ink": "#e9e7e2", "soft": "#a8abb2", "faint": "#868a92", "hair": "#30343b",
    "healthy": "#6fb3f2", "slow": "#e8c14c", "very-slow": "#c9913a", "unstable": "#ff9a55", "fails": "#ff6b57",
    "unknown": "#8f939b",
    "k0": "#6fb3f2", "k1": "#ff9a55", "k2": "#5cc9c1", "k3": "#d58fd0", "k4": "#e8c14c", "k5": "#aab2bd",
    "k6": "#3f86c6", "k7": "#ff6b57",
}  # fmt: skip
#: Heat map: blue end, blue, middle, orange, orange end.
_HEAT_LIGHT = ("#0a3a70", "#5f9bd1", "#f1eee6", "#eb9445", "#7a2b04")
_HEAT_DARK = ("#b5dbff", "#3a7ab8", "#262a30", "#bd6a26", "#ffcf96")


def variables() -> str:
    """The CSS that gives every tone its colour, for light paper, dark paper and print."""
    light, dark = _block(_LIGHT, _HEAT_LIGHT), _block(_DARK, _HEAT_DARK)
    # Notebooks announce a dark theme by a class or attribute on the body, browsers by a media query.
    notebook_dark = ", ".join(f"{s} .ls" for s in ('body[data-jp-theme-light="false"]', "body.vscode-dark"))
    notebook_light = ", ".join(f"{s} .ls" for s in ('body[data-jp-theme-light="true"]', "body.vscode-light"))
    return (
        f".ls{{{light};color-scheme:light}}"
        f"@media screen and (prefers-color-scheme:dark){{.ls{{{dark};color-scheme:dark}}"
        f"{notebook_light}{{{light};color-scheme:light}}}}"
        f"@media screen{{{notebook_dark}{{{dark};color-scheme:dark}}}}"
        + "".join(f".ls .h{i}{{fill:var(--h{i})}}" for i in range(2 * STEPS + 1))
        + "".join(f".ls .k{i}{{--c:var(--k{i})}}" for i in range(8))
        + "".join(f".ls .v-{name}{{--c:var(--{name})}}" for name in _LABELS)
    )


_LABELS = ("healthy", "slow", "very-slow", "unstable", "fails", "unknown")


def _block(colours: dict[str, str], heat: tuple[str, ...]) -> str:
    ramp = _ramp(heat)
    return ";".join([*(f"--{k}:{v}" for k, v in colours.items()), *(f"--h{i}:{c}" for i, c in enumerate(ramp))])


def _ramp(anchors: tuple[str, ...]) -> list[str]:
    """``2 STEPS + 1`` colours through the five anchors."""
    points = [_to_oklab(a) for a in anchors]
    colours = []
    for i in range(2 * STEPS + 1):
        place = i / (2 * STEPS) * (len(points) - 1)
        k = min(int(place), len(points) - 2)
        mixed = tuple(a + (b - a) * (place - k) for a, b in zip(points[k], points[k + 1], strict=True))
        colours.append(_to_hex((mixed[0], mixed[1], mixed[2])))
    return colours


Triple = tuple[float, float, float]


def _to_oklab(colour: str) -> Triple:
    r, g, b = (_linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    lms = (
        (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
        (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
        (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
    )
    return (
        0.2104542553 * lms[0] + 0.7936177850 * lms[1] - 0.0040720468 * lms[2],
        1.9779984951 * lms[0] - 2.4285922050 * lms[1] + 0.4505937099 * lms[2],
        0.0259040371 * lms[0] + 0.7827717662 * lms[1] - 0.8086757660 * lms[2],
    )


def _to_hex(lab: Triple) -> str:
    l_, m_, s_ = (
        (lab[0] + 0.3963377774 * lab[1] + 0.2158037573 * lab[2]) ** 3,
        (lab[0] - 0.1055613458 * lab[1] - 0.0638541728 * lab[2]) ** 3,
        (lab[0] - 0.0894841775 * lab[1] - 1.2914855480 * lab[2]) ** 3,
    )
    rgb = (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(c, 0.0), 1.0))):02x}" for c in rgb)


def _linear(c: float) -> float:
    return c / 12.92 if c <= 0.04045 else float(((c + 0.055) / 1.055) ** 2.4)


def _gamma(c: float) -> float:
    return 12.92 * c if c <= 0.0031308 else float(1.055 * c ** (1 / 2.4) - 0.055)
