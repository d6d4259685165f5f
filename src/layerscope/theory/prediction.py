"""One entry point: what mean-field theory says of a norm in a network, before a weight is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from layerscope.errors import LayerscopeError, did_you_mean
from layerscope.spec import Spec, parse_spec
from layerscope.theory.batch_noise import batch_noise
from layerscope.theory.growth import Growth, growth_law
from layerscope.theory.laws import Law, NoLaw, law_of
from layerscope.theory.readout import pooled_cosine
from layerscope.theory.recursion import Path, Stack, run
from layerscope.theory.residual import covers, run_residual

#: ``plain``: no skip path. ``post`` / ``pre``: residual blocks of two layers with the activation after the sum, or norm
#: and activation before each convolution. With ``skipinit`` the branch starts at exactly zero.
Topology = Literal["plain", "post", "pre", "post-skipinit", "pre-skipinit"]
Padding = Literal["zeros", "circular"]
GrowthKind = Literal["constant", "linear", "exponential", "vanishing"]

#: Stated errors of cosine and rate at width >= 128, tested against random networks: without a border, and with
#: zero-padded maps.
ERRORS, PADDED_ERRORS = (0.03, 0.015), (0.12, 0.05)

#: The same for Variance Normalization on zero-padded maps, and what is added to ERRORS, divided by sqrt(width), without
#: a border: on maps, and without positions. Its divisor sees how samples differ, which in a finite network is less and
#: less isotropic with depth: MLPs of 20 layers have cosine 0.76, 0.83, 0.88 at widths 64, 128, 256 where the limit is
#: 0.96, nets on circular 8 x 8 maps 0.89, 0.91, 0.93 for 0.95. With padding the pattern of the border decides
#: (:mod:`layerscope.theory.shared_sets`), and width plays no part.
VARIANCE_PADDED, VARIANCE_MAPS, VARIANCE_POINTS = (0.08, 0.03), (0.45, 0.2), (1.6, 0.4)

#: Least stated error of the cosine along a residual stream.
RESIDUAL_ERROR = 0.08

#: Stated relative error of the batch-noise ratio, where it is below 1.
NOISE_ERROR = 0.35


@dataclass(frozen=True)
class Prediction:
    """What the theory says of one configuration; ``None`` with a reason in ``missing`` where it says nothing."""

    norm: str
    topology: Topology
    depth: int
    """Layers of a plain stack, blocks of a residual one."""
    batch_size: int | None
    positions: tuple[int, ...]
    cosines: tuple[float, ...] | None
    """Mean cosine between samples of the unpooled features, after every layer or block."""
    cosines_pooled: tuple[float, ...] | None
    """The same if the features were averaged over positions there."""
    rate: float | None
    """Growth per layer, toward the input, of (gradient norm at the convolution output) x (its rms)."""
    rate_raw: float | None
    """The same without the rms: what depends on the scale of activations."""
    growth: GrowthKind | None
    """How the second moment goes with depth (plain) or with the blocks of one stage (residual)."""
    growth_factor: float | None
    """Factor per layer or block; for ``linear``, the increment per block."""
    second_moments: tuple[float, ...] | None
    """Second moment of the features after every layer or block, for an input of unit second moment."""
    batch_noise: float | None
    """nu at the classifier input: how much of a representation its batch companions decide; 0 without batch norms."""
    cosine_error: float
    rate_error: float
    growth_error: float
    batch_noise_error: float
    """Stated errors: absolute for cosine and rate, relative for growth factor and nu (where nu < 1)."""
    missing: tuple[tuple[str, str], ...] = ()
    """(field, reason) for everything that is ``None``."""
    notes: tuple[str, ...] = ()
    """Where an assumption is strained and the error may be larger."""

    @property
    def cosine(self) -> float | None:
        """Cosine between samples after the last layer."""
        return self.cosines[-1] if self.cosines else None

    @property
    def cosine_pooled(self) -> float | None:
        """Cosine between samples at the classifier input, after average pooling."""
        return self.cosines_pooled[-1] if self.cosines_pooled else None

    def why(self, name: str) -> str | None:
        """The reason why the field ``name`` is ``None``."""
        return dict(self.missing).get(name)


@dataclass(frozen=True)
class Configuration:
    """What a prediction is asked for; see :func:`predict`."""

    norm: Spec | str
    depth: int
    width: int | tuple[int, ...] | None = None
    positions: int | tuple[int, ...] = 1
    batch_size: int | None = None
    topology: str = "plain"
    input_cosine: float = 0.0
    padding: Padding = "zeros"


def predict(
    norm: Spec | str,
    *,
    depth: int,
    width: int | Sequence[int] | None = None,
    positions: int | Sequence[int] = 1,
    batch_size: int | None = None,
    topology: str = "plain",
    input_cosine: float = 0.0,
    padding: Padding = "zeros",
) -> Prediction:
    """What mean-field theory says of a ReLU network with this norm.

    Args:
        norm: the norm choice, such as ``"group:size=8"``.
        depth: layers of a plain stack or blocks of a residual one, at least 1.
        width: channels, one number or one for each layer; None stands for infinitely many.
        positions: S, map positions after each layer: one number or one for each layer. 1 for an MLP.
        batch_size: samples whose statistics are shared; only norms over the batch need it.
        topology: ``plain``, ``post``, ``pre``, ``post-skipinit`` or ``pre-skipinit``.
        input_cosine: mean cosine between input samples in [0, 1] (negative ones count as 0); ReLU nets forget it.
        padding: of the 3 x 3 convolutions; zero padding makes un-normalized nets shrink. MLPs (S = 1) have none.

    Returns:
        A prediction with its stated error. Fields that the theory does not cover are ``None``, with the reason.

    Raises:
        LayerscopeError: a number out of its range, a schedule of the wrong length, an unknown topology or a bad spec.

    Assumptions: He initialization, gains 1 and biases 0; infinite width apart from group sizes; exchangeable positions.
    """
    schedule = positions if isinstance(positions, int) else tuple(positions)
    widths = width if width is None or isinstance(width, int) else tuple(width)
    return predict_many([Configuration(norm, depth, widths, schedule, batch_size, topology, input_cosine, padding)])[0]


def predict_many(configurations: Sequence[Configuration], *, seed: int = 0) -> list[Prediction]:
    """:func:`predict` for many configurations at once: a thousand plain stacks take about a second.

    Residual stacks are followed one by one, some 30 ms each.

    Args:
        configurations: any mixture of norms, sizes and topologies.
        seed: of the recursion's draws; results differ between seeds by less than the stated errors.
    """
    checked = [_check(c) for c in configurations]
    stacks: dict[int, Stack] = {}
    missing: list[dict[str, str]] = []
    for index, (configuration, spec) in enumerate(checked):
        stack, reasons = _stack(configuration, spec)
        missing.append(reasons)
        if stack is not None:
            stacks[index] = stack
    plain = {i: s for i, s in stacks.items() if checked[i][0].topology == "plain"}
    paths = dict(zip(plain, run(list(plain.values()), seed), strict=True))
    streams = {i: (s, checked[i][0].topology) for i, s in stacks.items() if i not in plain and covers(s.law)}
    found = {key: run_residual(*key, seed=seed) for key in dict.fromkeys(streams.values())}
    paths |= {i: found[key] for i, key in streams.items()}
    return [
        _prediction(configuration, spec, missing[i], stacks.get(i), paths.get(i))
        for i, (configuration, spec) in enumerate(checked)
    ]


def _check(c: Configuration) -> tuple[Configuration, Spec]:
    spec = parse_spec(c.norm) if isinstance(c.norm, str) else c.norm
    topology = "post-skipinit" if c.topology == "skipinit" else c.topology
    if topology not in get_args(Topology):
        raise LayerscopeError(f"no topology {c.topology!r}: {did_you_mean(c.topology, get_args(Topology))}")
    if c.depth < 1:
        raise LayerscopeError(f"depth must be at least 1, got {c.depth}")
    if not -1.0 <= c.input_cosine <= 1.0:
        raise LayerscopeError(f"input_cosine must lie in [-1, 1], got {c.input_cosine}")
    if c.batch_size is not None and c.batch_size < 1:
        raise LayerscopeError(f"batch_size must be at least 1, got {c.batch_size}")
    if c.padding not in get_args(Padding):
        raise LayerscopeError(f"no padding {c.padding!r}: {did_you_mean(c.padding, get_args(Padding))}")
    for name, value in (("positions", c.positions), ("width", c.width)):
        if isinstance(value, tuple) and len(value) != c.depth:
            raise LayerscopeError(f"{name} has {len(value)} entries for {c.depth} layers; give one number or one each")
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
            raise LayerscopeError(f"{name} must be at least 1, got {value}")
    return replace(c, norm=spec, topology=topology, input_cosine=max(0.0, float(c.input_cosine))), spec


def _stack(c: Configuration, spec: Spec) -> tuple[Stack | None, dict[str, str]]:
    """The plain stack of a configuration; or none, and why the recursion does not cover it."""
    law = law_of(spec)
    if isinstance(law, NoLaw):
        return None, dict.fromkeys(_RECURSED, law.reason)
    positions = _schedule(c.positions, c.depth)
    widths = _schedule(c.width, c.depth) if c.width is not None else (None,) * c.depth
    units = []
    for width in widths:
        count = law.units(width, c.batch_size)
        if isinstance(count, str):
            return None, dict.fromkeys(_RECURSED, count)
        units.append(count)
    smallest = min(u * (1 if law.family == "point" else s) for u, s in zip(units, positions, strict=True))
    if law.family != "weights" and smallest < 4:
        reason = f"a statistic set of {smallest} elements: the mean of 1/sigma^2 does not exist below 4"
        return None, dict.fromkeys(_RECURSED, reason)
    return Stack(law, tuple(units), positions, c.padding == "zeros", c.input_cosine), {}


_RECURSED = ("cosines", "cosines_pooled", "rate", "rate_raw")


def _schedule(value: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    return (value,) * depth if isinstance(value, int) else value


def _prediction(
    c: Configuration, spec: Spec, missing: dict[str, str], stack: Stack | None, path: Path | None
) -> Prediction:
    missing = dict(missing)
    positions = _schedule(c.positions, c.depth)
    law = law_of(spec)
    growth = growth_law(law, c.topology, path, positions, c.padding == "zeros") if isinstance(law, Law) else None
    if growth is None:
        missing = {**missing, "growth": missing.get("cosines", "the growth law of this norm is not known")}
    if path is None and not missing.get("cosines"):
        missing = {
            **missing,
            **dict.fromkeys(_RECURSED, f"the stream of a {c.topology!r} stack with {spec} is not covered"),
        }
    elif path is not None and not path.gain:
        missing = {
            **missing,
            **dict.fromkeys(("rate", "rate_raw"), "gradients along a residual stream are not covered"),
        }
    growth = growth or Growth(None, None, 0.0)
    noise = _noise(law, stack, c)
    if noise is None:
        missing["batch_noise"] = missing.get(
            "cosines", f"batch noise is predicted for plain stacks, not {c.topology!r}"
        )
    depth = c.depth
    cosine_error, rate_error = _errors(stack, c.width)
    if c.topology != "plain":
        cosine_error = max(cosine_error, RESIDUAL_ERROR)
    return Prediction(
        norm=str(spec),
        topology=c.topology,  # type: ignore[arg-type]  # checked above
        depth=depth,
        batch_size=c.batch_size,
        positions=positions,
        cosines=path.b if path else None,
        cosines_pooled=_pooled(path, positions) if path else None,
        rate=_rate(path.gain) if path and path.gain and depth > 1 else None,
        rate_raw=_rate(path.gain_raw) if path and path.gain and depth > 1 else None,
        growth=growth.kind,
        growth_factor=growth.factor,
        second_moments=path.q if path else None,
        batch_noise=noise,
        cosine_error=cosine_error,
        rate_error=rate_error,
        growth_error=growth.error,
        batch_noise_error=NOISE_ERROR,
        missing=tuple(missing.items()),
        notes=_notes(stack),
    )


def _noise(law: Law | NoLaw, stack: Stack | None, c: Configuration) -> float | None:
    if isinstance(law, Law) and law.family != "samples":
        return 0.0
    if stack is None or min(stack.units) < 2 or c.topology != "plain":
        return None
    return batch_noise(
        stack.units[-1], stack.positions, centred=stack.law.centred, input_cosine=min(c.input_cosine, 0.99)
    )[-1]


def _pooled(path: Path, positions: Sequence[int]) -> tuple[float, ...]:
    means = [(b + (s - 1) * d) / s for b, d, s in zip(path.b, path.d, positions, strict=True)]
    return tuple(float(v) for v in pooled_cosine(path.a, means, positions))


def _rate(gains: Sequence[float]) -> float:
    """Root of the geometric mean of the factors on the square, over all layers but the last."""
    return math.exp(0.5 * sum(math.log(g) for g in gains[:-1]) / (len(gains) - 1))


def _errors(stack: Stack | None, width: int | tuple[int, ...] | None) -> tuple[float, float]:
    """Stated errors of cosine and rate."""
    if stack is None:
        return ERRORS
    has_border = stack.padded and stack.positions[0] > 1
    if not _is_variance(stack):
        return PADDED_ERRORS if has_border else ERRORS
    if has_border:
        return VARIANCE_PADDED
    narrowest = math.inf if width is None else min(width) if isinstance(width, tuple) else width
    more = VARIANCE_MAPS if stack.positions[0] > 1 else VARIANCE_POINTS
    cosine, rate = (e + m / math.sqrt(narrowest) for e, m in zip(ERRORS, more, strict=True))
    return cosine, rate


def _is_variance(stack: Stack) -> bool:
    return stack.law.family == "samples" and not stack.law.centred


def _notes(stack: Stack | None) -> tuple[str, ...]:
    if stack is None:
        return ()
    notes = []
    has_border = stack.padded and stack.positions[0] > 1
    if has_border and stack.law.family != "weights":
        notes.append("zero padding is averaged over the map: border and middle are not told apart")
    if _is_variance(stack) and not has_border:
        notes.append(
            "Variance Normalization: real cosines are lower in narrow networks; the stated error grows as 1/sqrt(width)"
        )
    return tuple(notes)
