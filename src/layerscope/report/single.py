"""One profile, or one verdict, as HTML."""

from __future__ import annotations

from layerscope.probe.records import Profile
from layerscope.report import explain, numbers
from layerscope.report.charts.tables import table
from layerscope.report.markup import Html, el, join
from layerscope.report.pictures import Pictures, Subject
from layerscope.report.verdicts import verdict_rows
from layerscope.verdict.types import Choice, Verdict


def profile_title(profile: Profile) -> str:
    """The network, and its norm where it was exchanged."""
    return profile.source if profile.norm == "as is" else f"{profile.source}, {profile.norm}"


def profile_fragment(profile: Profile) -> Html:
    """The figures of one network, and its numbers at the classifier input."""
    ends = [
        ("loss", numbers.short(profile.loss)),
        ("cosine between samples at the classifier input", numbers.cosine(profile.readout_cosine)),
        ("the same before pooling", numbers.cosine(profile.readout_cosine_unpooled)),
        ("effective rank at the classifier input, centred", numbers.short(profile.readout_effective_rank)),
        ("spread over samples at the classifier input", numbers.short(profile.readout_spread)),
        ("batch noise ν", numbers.short(profile.batch_noise)),
    ]
    chunks = f" in {profile.chunks} batches" if profile.chunks > 1 else ""
    facts = [
        f"{len(profile.records)} call sites",
        f"batch size {profile.batch_size}{chunks}",
        f"input {numbers.shape(profile.in_shape)}" if profile.in_shape else "",
        f"level {profile.level}",
        profile.dtype,
        profile.device,
        *(f"{name} {value}" for name, value in profile.context),
    ]
    figures = Pictures([Subject(profile_title(profile), (profile,))]).figures()
    return join(
        [
            el("p", " · ".join(f for f in facts if f), class_="ls-facts"),
            *(el("p", warning, class_="ls-facts") for warning in profile.warnings),
            el("section", table([e for e in ends if e[1] != numbers.MISSING]), class_="ls-words"),
            *(figures or [el("p", "No layer was measured, so there is nothing to draw.", class_="ls-facts")]),
            explain.repeat("", profile.versions),
        ]
    )


def verdict_title(verdict: Verdict) -> str:
    """The label."""
    return f"Verdict: {verdict.label}"


def verdict_fragment(verdict: Verdict) -> Html:
    """One row: label, reason, remedies, axes."""
    return verdict_rows([Choice("this network", verdict)])
