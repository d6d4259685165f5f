"""The verdict of a finished trial by the present rules and cut-offs, from what its row holds.

A study's rows keep the numbers, not the whole profile, so that rules can change without training again: all four axes
are judged anew, and so are the real steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from layerscope.verdict.decision import (
    Facts,
    backward_level,
    decide,
    forward_level,
    have_collapsed,
    informative_level,
    noise_level,
)
from layerscope.verdict.early import is_diverged, is_learning, is_stuck
from layerscope.verdict.features import number
from layerscope.verdict.thresholds import DEFAULT, Thresholds
from layerscope.verdict.types import Label, Level

#: Classes of the data sets that are bundled or known by name for studies (digits, Fashion-MNIST, CIFAR-10).
CLASSES = 10

#: Cut-off on the growth factor at the time of the run: a larger factor without a bad level was not exponential.
_GROWTH_THEN = 1.5


def rejudge(row: Mapping[str, Any], limits: Thresholds = DEFAULT) -> tuple[Label, Label]:
    """Labels from initialization alone, and with the real steps.

    Args:
        row: a flat row of a trial that ran :func:`layerscope.study.trials.probe_and_train`.
        limits: cut-offs.
    """
    noise, forward, backward = _level(row, "N"), _forward(row, limits), _backward(row, limits)
    nu = number(row, "axes.N")
    if noise != "unknown" and nu is not None:
        noise = noise_level(nu, int(row.get("batch_size", 1)), limits)
    ratio = number(row, "axes.B")
    facts = Facts(
        forward=forward,
        informative=_informative(row, limits),
        backward=backward,
        noise=noise,
        silent=_is_silent(row, limits),
        shrinks=ratio is not None and ratio < 1,
        tiny_sets=row.get("verdict") == "unstable" and "bad" not in (_level(row, "N"), _level(row, "B")),
        inactive="skipinit=true" in str(row.get("net")),
    )
    losses = [float(v) for v in _series(row, "micro.losses")]
    if not losses:
        return decide(facts)[0], decide(facts)[0]
    lost = is_diverged(losses, limits)
    steps = {
        "diverged": lost,
        "learns": not lost and is_learning(losses, limits, classes=CLASSES),
        "stuck": is_stuck(losses, limits),
    }
    seen = Facts(**{**vars(facts), **steps})
    return decide(facts)[0], decide(seen)[0]


def rejudged(table: Sequence[Mapping[str, Any]], limits: Thresholds = DEFAULT) -> list[dict[str, Any]]:
    """Flat rows with ``verdict`` and ``micro.verdict`` by the present rules; rows without series stay as they are."""
    found = []
    for row in table:
        if row.get("state") == "done" and "series.ms" in row:
            before, after = rejudge(row, limits)
            found.append({**row, "verdict": before, "micro.verdict": after})
        else:
            found.append(dict(row))
    return found


def _forward(row: Mapping[str, Any], limits: Thresholds) -> Level:
    stored, factor = _level(row, "F"), number(row, "axes.F")
    if stored == "unknown" or factor is None or not math.isfinite(factor):
        return stored
    ms = [float(v) for v in _series(row, "series.ms") if v is not None]
    if len(ms) < 2 or ms[0] <= 0:
        return stored
    exponential = stored == "bad" or factor <= _GROWTH_THEN
    return forward_level(factor, exponential, ms[-1] / ms[0], len(ms), limits)


def _backward(row: Mapping[str, Any], limits: Thresholds) -> Level:
    stored, ratio = _level(row, "B"), number(row, "axes.B")
    if stored == "unknown" or ratio is None:
        return stored
    layers = sum(v is not None for v in _series(row, "series.grad"))
    return backward_level(ratio, layers, _kind(row) == "residual", limits)


def _is_silent(row: Mapping[str, Any], limits: Thresholds) -> bool:
    update, loss = number(row, "init.update_max"), number(row, "init.probe_loss")
    return update is not None and bool(loss) and update / min(1.0, abs(loss or 0.0)) < limits.update_silent


def _informative(row: Mapping[str, Any], limits: Thresholds) -> Level:
    stored = _level(row, "I")
    cosines = [c for c in (number(row, "init.cosine"), number(row, "init.cosine_pooled")) if c is not None]
    if stored == "unknown" or any(math.isnan(c) for c in cosines):
        return stored
    if _has_tokens(row):
        between = [float(v) for v in _series(row, "path.token_cosines") if v is not None]
        if not between and (last := number(row, "init.cosine_token")) is not None:
            between = [0.0, last]  # from before the first one was kept
        if between and have_collapsed(between[0], between[-1], bool(cosines), limits):
            return "bad"
        score = number(row, "axes.I")
        return "good" if score is None or score >= limits.informative_bad else "caution"
    if not cosines:
        return stored
    level = informative_level(1 - cosines[0], 1 - cosines[-1], _stream_blocks(row), limits)
    # residual branches that add nothing yet are never worse than a caution
    return "caution" if level == "bad" and "skipinit=true" in str(row.get("net")) else level


def _kind(row: Mapping[str, Any]) -> str:
    """Residual or plain; rows from before it was kept say so by the name of their network."""
    plain = str(row.get("net")).startswith(("plain", "mlp", "uniform", "cfg", "vgg"))
    return str(row.get("path.kind", "plain" if plain else "residual"))


def _has_tokens(row: Mapping[str, Any]) -> bool:
    return bool(row.get("path.tokens", str(row.get("net")).startswith(("vit", "mixer", "gpt"))))


def _stream_blocks(row: Mapping[str, Any]) -> int | None:
    """As ``Trunk.stream_blocks``; of rows from before it was kept, post-activation ResNets have it."""
    if "path.stream_blocks" in row:
        found = number(row, "path.stream_blocks")
        return None if found is None else int(found)
    net, depth = str(row.get("net")), number(row, "depth")
    if not net.startswith("resnet") or "preact=true" in net or depth is None:
        return None
    return max(1, round(depth / 6))


def _level(row: Mapping[str, Any], axis: str) -> Level:
    found = row.get(f"levels.{axis}")
    return found if found in get_args(Level) else "unknown"  # type: ignore[return-value]


def _series(row: Mapping[str, Any], name: str) -> list[Any]:
    found = row.get(name, [])
    return json.loads(found) if isinstance(found, str) else list(found)
