"""The four axes: profiles of one choice over seeds -> one :class:`Axis` each, with number, reason, first bad layer.

===== ================================ ======================================================================
axis  headline number                  source
===== ================================ ======================================================================
F     growth of the second moment per  arXiv 2106.05956 (stable forward propagation); the tail of every stage
      block or layer, tail factor      of constant width, so that a linear law reads as about 1.16
I     1 - cosine between samples       ibid. (informative forward propagation); the larger cosine of the last map and
                                       the classifier input, because InstanceNorm hides before the pooling
B     scale-free gradient, first over  ibid. (stable backward propagation); |dL/du| rms(u), which unlike the raw
      last layer                       gradient does not change when the input is rescaled
N     batch-noise ratio nu             ours: variance over batch companions / variance over samples
===== ================================ ======================================================================
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from layerscope.probe.plans import FIRST_SAMPLES
from layerscope.probe.records import LayerRecord, Profile
from layerscope.quantities import gradient, growth
from layerscope.verdict.decision import (
    backward_level,
    forward_level,
    have_collapsed,
    informative_level,
    noise_level,
)
from layerscope.verdict.thresholds import Thresholds
from layerscope.verdict.trunk import Trunk, trunk
from layerscope.verdict.types import Axis, Level


def forward_axis(profiles: Sequence[Profile], limits: Thresholds) -> Axis:
    """Axis F: does the second moment grow exponentially, vanish, or stay (at most linear)?"""
    broken = _first(profiles, lambda p: next((r for r in p.records if r.nonfinite_share > 0), None))
    if broken:
        return Axis("F", "bad", math.inf, None, f"activations are not finite from {broken.name} on", broken.name)
    if lost := next((p for p in profiles if p.loss is not None and not math.isfinite(p.loss)), None):
        text = "the loss is not finite"
        if lost.level != "deep" and lost.batch_size > FIRST_SAMPLES:
            text += (
                f", though all outputs are for the first {FIRST_SAMPLES} samples of a batch, which is what level "
                f"{lost.level!r} reads: level 'deep' reads the others too and names the layer"
            )
        return Axis("F", "bad", math.inf, None, text, None)
    trunks = [trunk(p) for p in profiles]
    series = [[r.ms for r in t.forward if r.ms is not None] for t in trunks]
    if min(map(len, series)) < 2:
        return Axis("F", "unknown", None, None, "too few layers on the main path to see growth with depth")
    factors = [tail_factor(t) for t in trunks]
    factor, spread = _over_seeds(factors)
    # a branch that starts at zero may come first: the signal is what comes after it
    kept = median(s[-1] / next((ms for ms in s if ms > 0), math.nan) for s in series)
    t, ms = trunks[0], series[0]
    path = f"second moment {_number(ms[0])} at {t.forward[0].name}, {_number(ms[-1])} at {t.forward[-1].name}"
    jump = _jump(profiles[0], t, limits)
    if jump is not None and (jump[1] > 10 * factor or jump[1] < factor / 10):
        culprit, ratio = jump
        text = f"one layer, {culprit}, changes the second moment x{_number(ratio)} and nothing takes that back ({path})"
        return Axis("F", "bad", factor, spread, text, culprit)
    level = forward_level(factor, is_exponential(t), kept, len(ms), limits)
    if level == "bad" and factor > limits.growth_bad and not kept <= limits.vanish_bad:
        where = _first_beyond(profiles[0], t, 10.0)
        text = f"activations explode: x{factor:.2f} per {t.unit} ({path})"
        return Axis("F", "bad", factor, spread, text, where)
    if level == "bad":
        return Axis("F", "bad", factor, spread, f"the signal vanishes ({path})", _first_beyond(profiles[0], t, 0.01))
    if kept < limits.vanish_caution:
        text = f"the signal shrinks ({path})"
        return Axis("F", "caution", factor, spread, text, _first_beyond(profiles[0], t, limits.vanish_caution))
    if level == "caution":
        text = f"activations grow x{factor:.2f} per {t.unit} ({path})"
        return Axis("F", "caution", factor, spread, text, _first_beyond(profiles[0], t, 10.0))
    return Axis("F", "good", factor, spread, f"stable: x{factor:.2f} per {t.unit} ({path})")


def informative_axis(profiles: Sequence[Profile], limits: Thresholds) -> Axis:
    """Axis I: can the classifier still tell samples apart?"""
    scores, pooled = [], []
    for p in profiles:
        cosines = [c for c in (p.readout_cosine, p.readout_cosine_unpooled) if c is not None]
        if cosines:
            scores.append(1 - max(cosines))
            pooled.append((p.readout_cosine or -1) > (p.readout_cosine_unpooled or -1) + 0.05)
    t = trunk(profiles[0])
    if not scores and (between := _between_tokens(t)):
        # A classifier of every token (a language model) has no row per sample: tokens are what it must tell apart.
        score, spread = _over_seeds([1 - c for p in profiles for c in _between_tokens(trunk(p))[-1:]])
        words = f"cosine {between[-1]:.2f} between tokens at the last layer"
        return _token_axis(t, score, spread, words, False, limits)
    own = own_noise(profiles)
    if scores and own and any(math.isnan(s) for s in scores):
        text = "nothing of the input stands out of the network's own noise at the classifier input"
        return Axis("I", "bad", 0.0, None, text, profiles[0].classifier)
    if not scores or any(math.isnan(s) for s in scores):
        return Axis(
            "I", "unknown", None, None, "no similarity between samples could be measured at the classifier input"
        )
    score, spread = _over_seeds(scores)
    place = "after pooling" if sum(pooled) * 2 > len(pooled) else "at the classifier input"
    digits = 3 if score > 0.0015 else 4  # 1.000 would say that all samples are the same
    cosine = f"samples have cosine {1 - score:.{digits}f} {place}"
    if own:
        cosine += f" in expectation over the network's own noise ({_number(own)} of the variance between samples)"
    if t.tokens:
        return _token_axis(t, score, spread, cosine, True, limits)
    level = _informative_level(profiles, t, limits)
    if inactive_branches(t):
        text = f"residual branches add nothing at initialization; {cosine}, the stem's own"
        return Axis("I", "good" if level == "good" else "caution", score, spread, text)
    caution, _ = limits.informative(t.stream_blocks)
    where = next((r.name for r in t.forward if r.cosine is not None and 1 - r.cosine < caution), None)
    if place == "after pooling" and where is None:
        where = profiles[0].classifier
    if level == "bad":
        return Axis("I", "bad", score, spread, f"{cosine}: the classifier can hardly tell them apart", where)
    if level == "caution":
        return Axis("I", "caution", score, spread, f"{cosine}: little information reaches the classifier", where)
    return Axis("I", "good", score, spread, cosine)


def _informative_level(profiles: Sequence[Profile], t: Trunk, limits: Thresholds) -> Level:
    """By the distances of the last map and of the classifier input, each the median over seeds."""
    maps, inputs = (
        [1 - c for p in profiles if (c := getattr(p, name)) is not None]
        for name in ("readout_cosine_unpooled", "readout_cosine")
    )
    unpooled, pooled = (median(v) if v else None for v in (maps, inputs))
    known = [v for v in (unpooled, pooled) if v is not None]
    first, last = known[0], known[-1]
    return informative_level(first, last, t.stream_blocks, limits)


def _between_tokens(t: Trunk) -> list[float]:
    return [r.cosine_token for r in t.forward if r.cosine_token is not None] if t.tokens else []


def _token_axis(t: Trunk, score: float, spread: float | None, cosine: str, pooled: bool, limits: Thresholds) -> Axis:
    tokens = [r for r in t.forward if r.cosine_token is not None]
    last = tokens[-1].cosine_token if tokens else None
    if last is not None and have_collapsed(tokens[0].cosine_token or 0.0, last, pooled, limits):
        half = (1 + (tokens[0].cosine_token or 0.0)) / 2
        where = next(r.name for r in tokens if (r.cosine_token or 0.0) > half)
        return Axis("I", "bad", score, spread, f"tokens of one sample have collapsed (cosine {last:.3f})", where)
    seen = f"tokens of one sample have cosine {last:.2f}; {cosine}" if last is not None else cosine
    level: Level = "good" if score >= limits.informative_bad else "caution"
    return Axis("I", level, score, spread, seen)


def backward_axis(profiles: Sequence[Profile], limits: Thresholds) -> Axis:
    """Axis B: does the scale-free gradient grow or vanish toward the input?"""
    cut = _first(profiles, _cut)
    if cut is not None:
        text = f"no gradient reaches {cut.name} or what lies before it: the output does not depend on it"
        return Axis("B", "bad", None, None, text, cut.name)
    if is_silent(profiles, limits):
        largest = median(u for p in profiles if (u := _largest_update(p)) is not None)
        text = f"the loss moves no weight: the largest gradient is {_number(largest)} of its weight"
        return Axis("B", "bad", largest, None, f"{text}; the output hardly depends on them", profiles[0].classifier)
    ratios, rates = [], []
    for p in profiles:
        g = [r.grad_scaled for r in trunk(p).backward if r.grad_scaled]
        if len(g) >= 2:
            ratios.append(g[0] / g[-1])
            rates.append(gradient.backward_rate(g))
    if not ratios:
        text = "no gradient reached the main path: every parameter is frozen, or the classifier starts at zero"
        if any(r.grad_scaled or r.weight_grad for p in profiles for r in p.records):
            text = "fewer than two layers on the main path have a gradient, so that there is nothing to compare"
        return Axis("B", "unknown", None, None, text)
    ratio, spread = _over_seeds(ratios)
    rate, _ = _over_seeds(rates)
    t = trunk(profiles[0])
    seen = [r for r in t.backward if r.grad_scaled]
    text = f"gradient x{rate:.2f} per {t.unit} toward the input, first/last {_number(ratio)}"
    level = backward_level(ratio, len(seen), t.kind == "residual", limits)
    if not math.isfinite(ratio):
        return Axis("B", "bad", ratio, spread, "gradients are not finite", seen[0].name)
    if level == "bad" and ratio > 1:
        last = seen[-1].grad_scaled or 0.0
        where = next((r.name for r in reversed(seen) if (r.grad_scaled or 0.0) > 10 * last), seen[0].name)
        return Axis("B", "bad", ratio, spread, f"gradients explode: {text}", where)
    if level == "bad":
        return Axis("B", "bad", ratio, spread, f"gradients vanish: {text}", seen[0].name)
    if level == "caution":
        shrink = "gradients shrink: " if ratio < 1 else ""
        return Axis("B", "caution", ratio, spread, f"{shrink}{text}", seen[0].name)
    return Axis("B", "good", ratio, spread, text)


#: Norm classes whose statistics run over the samples of a batch.
_OF_THE_BATCH = re.compile(r"(Sync|Ghost)?BatchNorm|VarianceNorm")


def own_noise(profiles: Sequence[Profile]) -> float:
    """Variance over a network's own draws / variance between samples, median over seeds; 0 for a network without."""
    values = [p.own_noise for p in profiles if p.own_noise is not None]
    return median(values) if values else 0.0


def noise_axis(profiles: Sequence[Profile], limits: Thresholds) -> Axis:
    """Axis N: how much of a representation is the batch it happens to stand in?"""
    values = [p.batch_noise for p in profiles if p.batch_noise is not None]
    size = profiles[0].batch_size
    alone = next((r for r in profiles[0].of("norm") if _OF_THE_BATCH.match(r.kind)), None)
    if size == 1 and alone is not None:
        text = "a batch norm over one sample is an instance norm in training, and evaluated with other statistics"
        return Axis("N", "bad", None, None, text, alone.name)
    if not values:
        return Axis("N", "unknown", None, None, "batch noise was not measured")
    nu, spread = _over_seeds(values)
    own = own_noise(profiles)
    apart = f"; the network's own noise, {_number(own)} of the variance between samples, is not counted" if own else ""
    if nu == 0:
        return Axis("N", "good", nu, spread, f"no dependence on the batch{apart}")
    text = f"batch noise {nu:.2f} at batch size {size}{apart}"
    level = noise_level(nu, size, limits)
    if level == "bad":
        return Axis("N", "bad", nu, spread, f"{text}: companions outweigh the sample itself")
    if level == "caution":
        return Axis("N", "caution", nu, spread, f"{text}: features depend visibly on the companions")
    return Axis("N", "good", nu, spread, text)


#: Stages at least this long show their own law; shorter ones are judged over the whole trunk.
LONG_STAGE = 5


def _ladders(t: Trunk) -> list[list[float]]:
    """The series on which growth is read: long stages of constant shape, else the whole trunk."""
    end = t.forward[-1].ms
    # a layer that is silent while the last one is not stands on a side branch (a norm whose gamma starts at zero)
    stages = [[r.ms for r in stage if r.ms is not None and (r.ms > 0 or not end)] for stage in t.stages]
    long = [s for s in stages if len(s) >= LONG_STAGE]
    return long or [[ms for s in stages for ms in s]]


def tail_factor(t: Trunk) -> float:
    """Geometric mean growth per step over the second half of each ladder (1 = constant, 2 = doubling)."""
    return growth.tail_factor(_ladders(t))


def is_exponential(t: Trunk) -> bool:
    """Does a straight line fit log(ms) better than ms, on the longest ladder? True for ladders too short to tell."""
    ladder = max(_ladders(t), key=len)
    if len(ladder) < LONG_STAGE or min(ladder) <= 0:
        return True
    return growth.fit_growth(ladder).exponential


def inactive_branches(t: Trunk) -> bool:
    """Does every residual block hand its input on unchanged (SkipInit, ReZero, zero-initialised last norm)?"""
    if t.kind != "residual":
        return False
    pairs = [
        (a, b)
        for stage in t.stages
        for a, b in itertools.pairwise(stage)
        if a.ms is not None and b.ms is not None and a.cosine is not None and b.cosine is not None
    ]
    return bool(pairs) and all(
        abs((b.ms or 0) - (a.ms or 0)) <= 1e-5 * (a.ms or 1) and abs((b.cosine or 0) - (a.cosine or 0)) <= 1e-5
        for a, b in pairs
    )


def _jump(profile: Profile, t: Trunk, limits: Thresholds) -> tuple[str, float] | None:
    """A layer without a norm that alone takes the second moment far up or down, where it then stays; and the factor."""
    if t.kind == "residual":
        return None
    for a, b in itertools.pairwise(t.forward):
        if not a.ms or not b.ms or any(r.role == "norm" for r in profile.records[a.index + 1 : b.index + 1]):
            continue
        ratio, rest = b.ms / a.ms, [r.ms / a.ms for r in t.forward if r.index >= b.index and r.ms is not None]
        if ratio > limits.jump_bad and min(rest) > limits.jump_bad / 10:
            return _inside(profile, a, b, partial(operator.lt, 10 * a.ms)), ratio
        if ratio < limits.drop_bad and max(rest) < limits.drop_bad * 10:
            return _inside(profile, a, b, partial(operator.gt, a.ms / 10)), ratio
    return None


def _inside(profile: Profile, a: LayerRecord, b: LayerRecord, is_beyond: Callable[[float], bool]) -> str:
    """The first record after ``a`` that is beyond: the layer itself, where ``b`` is the activation behind it."""
    between = profile.records[a.index + 1 : b.index + 1]
    return next((r.name for r in between if r.ms is not None and is_beyond(r.ms)), b.name)


def _first_beyond(profile: Profile, t: Trunk, factor: float) -> str | None:
    """First layer whose second moment is beyond ``factor`` times the first one's (below it, for factor < 1)."""
    first = t.forward[0].ms or 0.0

    def is_beyond(ms: float) -> bool:
        return ms > factor * first if factor > 1 else ms < factor * first or ms == first == 0

    for i, r in enumerate(t.forward):
        if r.ms is not None and is_beyond(r.ms):
            is_layer = t.kind == "plain" and i > 0 and factor < 1
            return _inside(profile, t.forward[i - 1], r, is_beyond) if is_layer else r.name
    return t.forward[-1].name


def _cut(profile: Profile) -> LayerRecord | None:
    """The last layer with trainable weights that no gradient reaches although the loss depends on its output."""
    layers = [r for r in profile.of("conv", "linear") if r.weight_norm is not None]
    # the light probe takes no gradient inside a residual block, and no layer there cuts off the stream around it
    streams = tuple(f"{b.name}." for b in profile.of("block") if b.residual and b.grad_norm is not None)
    cut = [r for r in layers if r.grad_norm is None and r.weight_grad == 0.0 and not r.name.startswith(streams)]
    # all of them, and the classifier: the loss does not depend on any weight; those before one that learns: cut off
    learns = [r.index for r in layers if r.weight_grad]
    before = [r for r in cut if (not learns and len(cut) == len(layers)) or (learns and r.index < learns[0])]
    return before[-1] if before else None


def is_silent(profiles: Sequence[Profile], limits: Thresholds) -> bool:
    """Whether no weight would move: gradients reach all of them, and are nothing beside them."""
    largest = [update for p in profiles if (update := _largest_update(p)) is not None]
    return bool(largest) and median(largest) < limits.update_silent


def _largest_update(profile: Profile) -> float | None:
    """Largest |dL/dW| / |W|, over the loss where that is below 1 (a network that fits already has little to move).

    None where nothing is trained, and where some weight starts at zero: what it hides shows after one step.
    """
    if any(r.weight_grad and not r.weight_norm for r in profile.records) or not profile.loss:
        return None
    updates = [r.relative_update for r in profile.records if r.relative_update is not None]
    return max(updates) / min(1.0, abs(profile.loss)) if updates else None


def _first(profiles: Sequence[Profile], pick: Callable[[Profile], LayerRecord | None]) -> LayerRecord | None:
    return next((found for p in profiles if (found := pick(p)) is not None), None)


def _over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Median and half range; no spread from a single seed."""
    return median(values), (max(values) - min(values)) / 2 if len(values) > 1 else None


def _number(value: float) -> str:
    """Three digits; powers of ten as 3.3e15."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if power else digits
