"""The second route to a verdict: what mean-field theory says of the same norm, depth, map sizes and batch.

The theory needs no weights and no data, so where it disagrees with the probe beyond its stated error, the configuration
breaks one of its assumptions: maps too small to count as many positions, zero padding, correlated inputs. That is worth
a line of its own in the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from layerscope import theory
from layerscope.errors import LayerscopeError
from layerscope.probe.records import LayerRecord, Profile
from layerscope.quantities.gradient import backward_rate
from layerscope.verdict.axes import inactive_branches, tail_factor
from layerscope.verdict.sets import channels_positions
from layerscope.verdict.trunk import Trunk, trunk
from layerscope.verdict.types import Analytic

#: Maps of fewer positions are not "many", whatever a mean-field argument would like.
MANY_POSITIONS = 16
#: A first layer whose samples are this alike starts the recursion far from its usual path.
ALIKE = 0.6


def analytic_route(profiles: Sequence[Profile], path: Trunk) -> Analytic | None:
    """What the theory predicts and whether it agrees; None where it does not cover the network."""
    norm = _norm(profiles[0])
    if norm is None or path.tokens or len(path.backward) < 2:
        return None
    try:
        return _plain(norm, profiles, path) if path.kind == "plain" else _residual(norm, profiles, path)
    except LayerscopeError:
        return None  # a norm or size without a law; the measured route stands alone


def _norm(profile: Profile) -> str | None:
    if profile.norm != "as is":
        return profile.norm
    kinds = {r.kind for r in profile.of("norm")}
    if not kinds:
        return "none"
    if kinds <= {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}:
        return "batch"
    return "instance" if kinds <= {"InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"} else None


def _plain(norm: str, profiles: Sequence[Profile], path: Trunk) -> Analytic | None:
    sizes = [channels_positions(r) for r in path.backward]
    start = path.backward[0].cosine
    said = theory.predict(
        norm,
        depth=len(sizes),
        width=[c for c, _ in sizes],
        positions=[s for _, s in sizes],
        batch_size=profiles[0].batch_size,
        input_cosine=min(max(start or 0.0, 0.0), 1.0),
    )
    if said.cosine is None and said.rate is None:
        return None
    seen_cosine = _median(p.readout_cosine_unpooled for p in profiles)
    seen_rate = _median(_rate(p) for p in profiles)
    differences = []
    agrees: bool | None = None
    for name, predicted, measured, error in (
        ("cosine", said.cosine, seen_cosine, said.cosine_error),
        ("gradient rate", said.rate, seen_rate, said.rate_error),
    ):
        if predicted is None or measured is None:
            continue
        agrees = agrees is not False and abs(predicted - measured) <= error
        if abs(predicted - measured) > error:
            differences.append(f"{name} {measured:.3f} measured, {predicted:.3f} +- {error:g} predicted")
    note = f"{'; '.join(differences)}: {_cause(path.backward, start)}" if differences else ""
    return Analytic(said.cosine, said.rate, said.growth, agrees, note)


def _residual(norm: str, profiles: Sequence[Profile], path: Trunk) -> Analytic | None:
    topology = "post" if path.stream_blocks else "pre"
    if inactive_branches(path):
        topology += "-skipinit"
    longest = max(path.stages, key=len)
    channels, positions = channels_positions(longest[0])
    said = theory.predict(
        norm,
        depth=len(longest),
        width=channels,
        positions=positions,
        batch_size=profiles[0].batch_size,
        topology=topology,
    )
    if said.growth is None:
        return None
    factor = median(tail_factor(trunk(p)) for p in profiles)
    agrees, note = True, ""
    if said.growth == "exponential" and said.growth_factor is not None:
        agrees = abs(factor / said.growth_factor - 1) <= said.growth_error
        note = f"x{factor:.2f} per block measured, x{said.growth_factor:.2f} +- {said.growth_error:.0%} predicted"
    elif factor > 1.5:
        agrees, note = False, f"x{factor:.2f} per block measured, {said.growth} growth predicted"
    return Analytic(None, None, said.growth, agrees, "" if agrees else f"{note}: {_cause(longest, None)}")


def _cause(records: Sequence[LayerRecord], start: float | None) -> str:
    smallest = min(channels_positions(r)[1] for r in records)
    if 1 < smallest < MANY_POSITIONS:
        return (
            f"maps of {smallest} positions are too small for the theory's averages, and zero padding weighs most there"
        )
    if start is not None and start > ALIKE:
        return f"the first layer already sees similar samples (cosine {start:.2f})"
    if smallest > 1:
        return (
            "neighbouring pixels are correlated, most of all in the first layers; the theory takes them as exchangeable"
        )
    return "finite width, or weights that are not He-normal"


def _rate(profile: Profile) -> float | None:
    gradients = [r.grad_scaled for r in trunk(profile).backward if r.grad_scaled]
    rate = backward_rate(gradients)
    return rate if math.isfinite(rate) else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None
