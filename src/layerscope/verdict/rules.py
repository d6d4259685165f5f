"""Profiles in, one verdict out, by rules in a fixed order so that the reason stays legible."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.errors import ProbeError
from layerscope.probe.records import LayerRecord, Profile
from layerscope.verdict import axes as measure
from layerscope.verdict import evidence
from layerscope.verdict.analytic import analytic_route
from layerscope.verdict.decision import Cause, Facts, decide
from layerscope.verdict.early import is_learning, is_stuck
from layerscope.verdict.features import features, outputs
from layerscope.verdict.remedies import remedies
from layerscope.verdict.sets import smallest_set
from layerscope.verdict.thresholds import DEFAULT, Thresholds
from layerscope.verdict.trunk import trunk
from layerscope.verdict.types import Analytic, Axis, Label, MicroTrain, Verdict


def judge(
    profiles: Profile | Sequence[Profile],
    *,
    micro: Sequence[MicroTrain] = (),
    thresholds: Thresholds = DEFAULT,
    analytic: bool = True,
) -> Verdict:
    """Say what training this network will be like, from its profiles at initialization.

    The rules, first match wins:

    1. not finite, or the second moment grows exponentially or vanishes, or the gradient is cut off or next to nothing
       -> ``fails``
    2. batch noise above its limit, or statistics over three elements or fewer -> ``unstable``
    3. the scale-free gradient explodes toward the input -> ``unstable``; vanishes -> ``very slow``
       (a few real steps that diverged also make it ``unstable``; whose loss did not fall, ``very slow``; whose loss
       fell by 30 % make it ``healthy``, whatever initialization looked like, unless the batch noise is bad)
    4. samples cannot be told apart at the classifier -> ``very slow`` or ``slow``
    5. otherwise ``healthy``

    Args:
        profiles: one network's profile, or the same choice at several seeds.
        micro: a few real training steps per seed, see :func:`layerscope.verdict.real_steps`.
        thresholds: the cut-offs.
        analytic: also ask the mean-field theory and report where it disagrees.

    Returns:
        The verdict; ``unknown`` with a reason where nothing can be said.

    Raises:
        ProbeError: no profile, or profiles of different choices.
    """
    several = (profiles,) if isinstance(profiles, Profile) else tuple(profiles)
    if not several:
        raise ProbeError("judge needs at least one profile")
    if wrong := [p for p in several if not isinstance(p, Profile)]:
        raise ProbeError(f"judge takes profiles, as layerscope.profile gives them; got {type(wrong[0]).__name__}")
    if len({(p.source, p.norm, p.batch_size) for p in several}) > 1:
        raise ProbeError(
            "judge takes the profiles of one network and norm at several seeds; these are of different choices"
        )
    if not several[0].records:
        return Verdict.unknown("no layer was recorded")

    f = measure.forward_axis(several, thresholds)
    i = measure.informative_axis(several, thresholds)
    b = measure.backward_axis(several, thresholds)
    n = measure.noise_axis(several, thresholds)
    found = (f, i, b, n)
    path = trunk(several[0])
    smallest = smallest_set(several[0])
    tiny = smallest is not None and smallest[0] <= thresholds.smallest_set
    route: Analytic | None = analytic_route(several, path) if analytic else None

    classes = outputs(several[0])
    label, cause = decide(
        Facts(
            forward=f.level,
            informative=i.level,
            backward=b.level,
            noise=n.level,
            cut=b.level == "bad" and b.value is None,
            silent=measure.is_silent(several, thresholds),
            shrinks=b.value is not None and b.value < 1,
            tiny_sets=tiny,
            inactive=measure.inactive_branches(path),
            diverged=any(m.diverged for m in micro),
            learns=bool(micro)
            and all(is_learning(m.losses, thresholds, classes=classes) and not m.diverged for m in micro),
            stuck=bool(micro) and all(is_stuck(m.losses, thresholds) for m in micro),
        )
    )
    if label == "unknown":
        return Verdict("unknown", found, "; ".join(a.text for a in (f, i, b)), analytic=route)
    reason, where = _why(cause, found, smallest, micro)
    if micro and not any(m.diverged for m in micro):
        gone = sorted(m.drop for m in micro)[len(micro) // 2]
        reason += f"; the loss fell by {gone:.0%} in {micro[0].steps} real steps at learning rate {micro[0].lr:g}"
    if where and where not in reason and where != several[0].classifier:
        reason += f", from {where} on"
    if (own := measure.own_noise(several)) and "own noise" not in reason:
        reason += f"; the network's own noise, {own:.2g} of the variance between samples, was kept apart from it"
    second = _also(label, found)
    advice = remedies(found, residual=path.kind == "residual", tokens=path.tokens, norm=several[0].norm, tiny_sets=tiny)
    if label == "unstable" and any(m.diverged for m in micro):
        advice = (f"lower the learning rate below {micro[0].lr:g}, or warm it up", *advice)[:5]
    # how often the package's own cut-offs were right says nothing about other ones
    record = evidence.track_record(label, "micro" if micro else "init") if thresholds == DEFAULT else ""
    score = learned_score(several, micro)
    return Verdict(label, found, _sentence(reason) + second, advice, where, route, record, tuple(micro), score)


def learned_score(profiles: Sequence[Profile], micro: Sequence[MicroTrain] = ()) -> float | None:
    """The published learned score of a choice, mean over its seeds; None where none is published.

    Args:
        profiles: of one network and norm.
        micro: real steps, one for each profile, or none.
    """
    formula = evidence.load().scores.get("learned micro" if micro else "probe init")
    if formula is None:
        return None
    steps = list(micro) if len(micro) == len(profiles) else [micro[0] if micro else None] * len(profiles)
    rows = [features(p, lr=m.lr if m else None, micro=m) for p, m in zip(profiles, steps, strict=True)]
    return sum(formula.expected(row) for row in rows) / len(rows)


def _why(
    cause: Cause, axes: tuple[Axis, ...], smallest: tuple[int, LayerRecord] | None, micro: Sequence[MicroTrain]
) -> tuple[str, str | None]:
    """The cause in words, and the first layer at which it shows."""
    f, i, b, n = axes
    if cause == "sets" and smallest is not None:
        name = smallest[1].name
        return f"statistics over {smallest[0]} elements at {name}: their gradient diverges", name
    if cause == "steps diverged":
        return _diverged(micro), None
    if cause == "steps stuck":
        return "the first steps do not learn", None
    if cause == "steps learn":
        doubts = [a.text for a in axes if a.level == "bad"]
        return "; ".join(["the first steps learn", *(f"although {d}" for d in doubts)]), None
    if cause == "backward" and b.value is not None and not b.value < 1:
        return f"{b.text}: a normal learning rate is too high", b.where
    axis = {"forward": f, "noise": n, "backward": b, "informative": i}.get(cause)
    return (_healthy(axes), None) if axis is None else (axis.text, axis.where)


def _diverged(micro: Sequence[MicroTrain]) -> str:
    lost = [m for m in micro if m.diverged]
    of = f" at {len(lost)} of {len(micro)} seeds" if len(micro) > 1 else ""
    return f"diverged{of} within {(lost[0].diverged_at or 0) + 1} real steps at learning rate {lost[0].lr:g}"


def _healthy(axes: tuple[Axis, ...]) -> str:
    cautions = [a.text for a in axes if a.level == "caution"]
    return "nothing stands in the way; watch: " + "; ".join(cautions) if cautions else "nothing stands in the way"


def _also(label: Label, axes: tuple[Axis, ...]) -> str:
    """A second bad axis, named beside the one that decided."""
    if label in ("healthy", "unknown", "fails"):
        return ""
    decisive = {"unstable": "NB", "very slow": "IB", "slow": "I"}[label]
    others = [a for a in axes if a.level == "bad" and a.name not in decisive]
    if label == "unstable":
        others = [a for a in axes if a.level in ("bad", "caution") and a.name == "I"]
    return "".join(f" Also: {a.text}." for a in others)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
