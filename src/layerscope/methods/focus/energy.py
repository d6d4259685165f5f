"""Energy of a computation from the processor's own counters (Linux powercap, "RAPL"), or None with the reason.

The counters cover the whole processor package, so other processes are in the figure; idle power is measured first and
subtracted. An estimate from a nominal wattage is not a measurement and is never made here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """Joules of one call, above idle, and how sure that is."""

    joules: float
    """Median over repeats."""
    spread: float
    """Largest minus smallest repeat, in joules."""
    idle_watts: float
    seconds: float
    """Median time of one call."""
    repeats: int
    wraps: int
    """How often a counter overflowed and was corrected."""
    domains: tuple[str, ...]
    """The packages that were read."""


@dataclass(frozen=True)
class _Counter:
    name: str
    path: Path
    range: int

    def read(self) -> int:
        return int(self.path.read_text())


def why_not(root: Path = POWERCAP) -> str | None:
    """None if the counters can be read, else the reason in one sentence."""
    found, problem = _counters(root)
    return None if found else problem


def measure(
    fn: Callable[[], object], *, repeats: int = 5, idle_seconds: float = 0.5, root: Path = POWERCAP
) -> Energy | None:
    """Energy of one call of ``fn``, or None where there is no readable counter (:func:`why_not` says why).

    Args:
        fn: what to measure; called once to warm up and then ``repeats`` times.
        repeats: at least 5; a counter ticks about every millisecond, so a call should take much longer than that.
        idle_seconds: how long to watch the idle processor first.
        root: the powercap directory; tests give a tree of their own.

    Raises:
        ValueError: fewer than 5 repeats.
    """
    if repeats < 5:
        raise ValueError(
            f"repeats: expected at least 5, got {repeats}; a single reading is dominated by other processes"
        )
    counters, _ = _counters(root)
    if not counters:
        return None
    fn()
    wraps = 0

    def watch(action: Callable[[], object]) -> tuple[float, float]:
        nonlocal wraps
        before, start = [c.read() for c in counters], time.perf_counter()
        action()
        seconds, after = time.perf_counter() - start, [c.read() for c in counters]
        total = 0
        for counter, a, b in zip(counters, before, after, strict=True):
            if b < a:
                wraps += 1
                b += counter.range + 1
            total += b - a
        return total * 1e-6, seconds

    idle_joules, idle_time = watch(lambda: time.sleep(idle_seconds))
    idle_watts = idle_joules / idle_time
    joules, times = [], []
    for _ in range(repeats):
        used, seconds = watch(fn)
        joules.append(used - idle_watts * seconds)
        times.append(seconds)
    return Energy(
        statistics.median(joules),
        max(joules) - min(joules),
        idle_watts,
        statistics.median(times),
        repeats,
        wraps,
        tuple(c.name for c in counters),
    )


def _counters(root: Path) -> tuple[list[_Counter], str]:
    if not root.is_dir():
        return [], f"{root} does not exist: this system has no powercap counters"
    found, denied = [], False
    for zone in sorted(root.glob("*:*")):
        if zone.name.count(":") != 1:  # a part of a package is already in the package's own counter
            continue
        try:
            name = (zone / "name").read_text().strip()
            limit = int((zone / "max_energy_range_uj").read_text())
            counter = _Counter(name, zone / "energy_uj", limit)
            counter.read()
        except PermissionError:
            denied = True
        except (OSError, ValueError):
            continue
        else:
            if name.startswith("package"):
                found.append(counter)
    if found:
        return found, ""
    return [], f"the counters under {root} need root to read" if denied else f"{root} holds no package counter"
