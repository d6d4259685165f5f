"""Colours measured: contrast with the paper, order without hue, difference without red and green."""

from __future__ import annotations

import itertools

import pytest

from layerscope.report import palette
from layerscope.report.looks import LABEL_LOOKS, LEVEL_LOOKS, dashes

MODES = {"light": (palette._LIGHT, palette._HEAT_LIGHT), "dark": (palette._DARK, palette._HEAT_DARK)}
both = pytest.mark.parametrize("mode", sorted(MODES))


def channels(colour: str) -> list[float]:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in values]


def luminance(colour: str) -> float:
    r, g, b = channels(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def without_red_green(colour: str) -> list[float]:
    """What a deuteranope sees, linear RGB (Vienot, Brettel, Mollon 1999)."""
    r, g, b = channels(colour)
    mixed = 0.29275 * r + 0.70725 * g
    return [mixed, mixed, -0.02234 * r + 0.02234 * g + b]


@both
def test_text_tones_stand_out_from_the_paper(mode: str) -> None:
    colours, _ = MODES[mode]
    for name in ("ink", "soft", "faint", "healthy", "slow", "very-slow", "unstable", "fails", "unknown"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in (f"k{i}" for i in range(8)):
        assert contrast(colours[name], colours["paper"]) >= 2.5, name


@both
def test_heat_grows_away_from_the_paper_on_both_sides(mode: str) -> None:
    """Lightness alone orders the cells: in grey print, strong is still strong."""
    colours, heat = MODES[mode]
    ramp = palette._ramp(heat)
    assert len(ramp) == 2 * palette.STEPS + 1
    assert ramp[palette.STEPS] == heat[2]
    away = [contrast(c, colours["paper"]) for c in ramp]
    right, left = away[palette.STEPS :], away[palette.STEPS :: -1]
    for side in (right, left):
        assert all(b > a for a, b in itertools.pairwise(side))
        assert side[0] < 1.35
        assert side[-1] > 7


@both
def test_both_ends_differ_without_red_and_green(mode: str) -> None:
    _, heat = MODES[mode]
    for one, other in ((heat[0], heat[4]), (heat[1], heat[3])):
        a, b = without_red_green(one), without_red_green(other)
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.1


def test_the_ramp_passes_through_its_anchors() -> None:
    ramp = palette._ramp(palette._HEAT_LIGHT)
    half = palette.STEPS // 2
    assert [ramp[0], ramp[half], ramp[2 * half], ramp[3 * half], ramp[4 * half]] == list(palette._HEAT_LIGHT)


@both
def test_the_stylesheet_carries_the_ramp_and_every_tone(mode: str) -> None:
    colours, heat = MODES[mode]
    css = palette.variables()
    for name, colour in [*colours.items(), *((f"h{i}", c) for i, c in enumerate(palette._ramp(heat)))]:
        assert f"--{name}:{colour}" in css
    assert all(f".{look.tone}{{" in css for look in LABEL_LOOKS.values())


def test_no_two_labels_share_shape_letter_or_tone() -> None:
    for looks in (LABEL_LOOKS, LEVEL_LOOKS):
        for attribute in ("tone", "drawing", "ascii"):
            values = [getattr(look, attribute) for look in looks.values()]
            assert len(values) == len(set(values)), attribute


def test_lines_of_one_tone_differ_by_dashes() -> None:
    made = dashes(["a", "b", "a", "a", "b"])
    assert made[0] is None
    assert made[1] is None
    assert len({made[0], made[2], made[3]}) == 3
