"""Numbers as people read them: three digits, powers of ten where needed, a dash for what was not measured."""

from __future__ import annotations

import math

MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits in at most about eight characters.

    >>> short(1.4e17), short(0.98765), short(25.04), short(None), short(float("inf"))
    ('1.4e17', '0.988', '25', '–', 'inf')
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits + 1) or size < 1e-3:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cosine(value: float | None) -> str:
    """A cosine: two digits, three or four where it is close to 1 and they matter."""
    if value is None or not abs(value) < 1.001:  # missing, not finite, or not a cosine at all
        return short(value)
    return f"{value:.{2 if value < 0.9 else 3 if value < 0.9985 else 4}f}"


def times(value: float | None) -> str:
    """A factor: ``×1.16``, ``×1.4e9``."""
    return short(value) if value is None or math.isnan(value) else "×" + short(value)


def spread(written: str, half_range: float | None) -> str:
    """``±0.02`` with as many decimals as the number it follows; empty where it would not change a written digit.

    >>> spread("0.97", 0.014), spread("0.97", 0.001), spread("×2.1e9", 3e8)
    ('±0.01', '', '±3.0e8')
    """
    if half_range is None or not math.isfinite(half_range) or half_range <= 0:
        return ""
    if "e" in written or not any(c.isdigit() for c in written):
        return "±" + short(half_range)
    decimals = len(written.partition(".")[2])
    text = f"{half_range:.{decimals}f}"
    return "±" + text if float(text) > 0 else ""


def power(exponent: int) -> str:
    """A power of ten for an axis: ``0.1``, ``1``, ``100``, ``10⁹``."""
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_RAISED)


def seconds(value: float) -> str:
    """A duration in words.

    >>> seconds(0.42), seconds(43.2), seconds(260), seconds(12345)
    ('0.4 s', '43 s', '4 min 20 s', '3 h 26 min')
    """
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shape(dims: tuple[int, ...]) -> str:
    """``(3, 32, 32)`` as ``3×32×32``."""
    return "×".join(str(d) for d in dims)
