"""Made-up but realistic results: networks whose layers follow the laws that real ones follow at initialization."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerscope.probe.records import LayerRecord, Profile
from layerscope.verdict.types import Analytic, Axis, AxisName, Choice, Comparison, Label, Level, Verdict


@dataclass(frozen=True)
class Law:
    """How one norm behaves: growth per layer, where similarity ends, gradient per layer, noise, verdict."""

    norm: str
    label: Label
    growth: float
    cosine: float
    pooled: float
    gradient: float
    noise: float
    levels: tuple[Level, Level, Level, Level]
    reason: str
    remedies: tuple[str, ...] = ()


LAWS = (
    Law("none", "fails", 2.1, 0.996, 0.997, 1.01, 0.0, ("bad", "bad", "good", "good"),
        "activations explode: x2.18 per block (second moment 0.39 at stage1.0, 5.3e9 at stage3.8)",
        ("SkipInit: multiply every residual branch by a learnable scalar that starts at 0",
         "or use a norm that divides by what it measures: batch, group:size=8, layer", "or a third way")),
    Law("batch", "healthy", 1.0, 0.60, 0.72, 1.05, 0.17, ("good", "good", "caution", "good"), ""),
    Law("layer", "slow", 1.0, 0.92, 0.968, 1.0, 0.0, ("good", "caution", "good", "good"),
        "samples have cosine 0.968 at the classifier input: little information reaches the classifier",
        ("use smaller groups (group:size=4), or batch at 16 samples or more: centring keeps samples apart",)),
    Law("instance", "very slow", 1.0, 0.60, 0.995, 1.09, 0.0, ("good", "bad", "caution", "good"),
        "samples have cosine 0.995 after pooling: the classifier can hardly tell them apart",
        ("keep per-sample means: group:size=2 or more, or batch",)),
    Law("group:size=8", "slow", 1.0, 0.89, 0.953, 1.01, 0.0, ("good", "caution", "good", "good"),
        "samples have cosine 0.953 at the classifier input: little information reaches the classifier"),
    Law("group:size=2", "unstable", 1.0, 0.72, 0.928, 1.12, 0.0, ("good", "caution", "bad", "good"),
        "gradients explode: x1.12 per layer toward the input, first/last 600: a normal learning rate is too high"),
    Law("evonorm-s0", "healthy", 1.0, 0.45, 0.58, 1.02, 0.0, ("good", "good", "good", "good"), ""),
    Law("weight", "fails", 4.3, 0.98, 0.98, 1.2, 0.0, ("bad", "caution", "caution", "good"),
        "activations explode: x4.35 per block (second moment 0.39 at stage1.0, 1.3e18 at stage3.8)",
        ("put the scaled activation on the branch only: on the skip path it multiplies the stream at every block",)),
)  # fmt: skip


def profile(law: Law, seed: int = 0, layers: int = 57, residual: bool = False) -> Profile:
    """A profile of a net in three stages of equal length that obeys ``law``, with a few per cent of noise."""
    noise = random.Random(f"{law.norm}{seed}")
    records: list[LayerRecord] = []
    for i in range(layers):
        stage, depth = 3 * i // layers, i / max(layers - 1, 1)
        inside = i - math.ceil(stage * layers / 3)
        shape = (32, 32 << stage, 32 >> stage, 32 >> stage)
        ms = 0.4 * (law.growth**i if law.growth > 1 else 1 + 0.9 * inside / (layers / 27)) * noise.uniform(0.93, 1.08)
        cosine = 1 - (1 - 0.55) ** (1 - depth) * (1 - law.cosine) ** depth * noise.uniform(0.95, 1.05)
        gradient = law.gradient ** (layers - 1 - i) * noise.uniform(0.9, 1.1)
        name = f"stage{stage + 1}.{inside}"
        numbers = {
            "variance": ms * 0.55, "std": math.sqrt(ms * 0.55), "ms": ms, "mean": 0.1, "cosine": min(cosine, 0.99999),
            "cosine_pooled": min(cosine + 0.02, 0.99999), "grad_norm": 0.01 * gradient / math.sqrt(ms),
            "grad_scaled": 0.01 * gradient,
        }  # fmt: skip
        base = LayerRecord(len(records), f"{name}.conv", "Conv2d", "conv", "conv", shape, **numbers)
        records.append(base)
        records.append(replace(base, index=len(records), name=f"{name}.act", kind="ReLU", role="activation"))
        if residual:
            records.append(
                replace(base, index=len(records), name=name, kind="PostActBlock", role="block", residual=True)
            )
    return Profile(
        source="resnet56", norm=law.norm, records=tuple(records), level="standard", batch_size=32, chunks=1,
        in_shape=(3, 32, 32), seed=seed, loss=2.5, classifier="fc", readout_cosine=law.pooled,
        readout_cosine_unpooled=law.cosine, readout_effective_rank=7.0, readout_spread=0.4, batch_noise=law.noise,
        seconds=1.2, versions=(("layerscope", "0.1.0"), ("torch", "2.13.0")),
    )  # fmt: skip


def verdict(law: Law, first: str = "stage1.4.act") -> Verdict:
    """The verdict that goes with ``law``."""
    names: tuple[AxisName, ...] = ("F", "I", "B", "N")
    values = (max(law.growth, 1.04), 1 - law.pooled, law.gradient**56, law.noise)
    axes = tuple(
        Axis(n, level, v, 0.02 * v, f"made-up axis {n}", first if level == "bad" else None)
        for n, level, v in zip(names, law.levels, values, strict=True)
    )
    theory = Analytic(
        law.cosine,
        law.gradient,
        "linear",
        law.norm != "instance",
        "differs by 0.2: small maps" * (law.norm == "instance"),
    )
    record = "Of 24 held-out trainings with this verdict, 21 went as told." if law.label == "fails" else ""
    return Verdict(law.label, axes, law.reason, law.remedies, where=first, analytic=theory, track_record=record)


def comparison(laws: Sequence[Law] = LAWS, seeds: int = 3, layers: int = 57, residual: bool = False) -> Comparison:
    """Several norms side by side."""
    choices = tuple(
        Choice(w.norm, verdict(w, "stage1.4" if residual else "stage1.4.act"),
               tuple(profile(w, s, layers, residual) for s in range(seeds)),
               ("EvoNorm stands in the activation slot",) if w.norm.startswith("evo") else ())
        for w in laws
    )  # fmt: skip
    flags = " ".join(f"--norm {w.norm}" for w in laws)
    return Comparison(
        source="resnet56",
        data="digits",
        batch_size=32,
        seeds=tuple(range(seeds)),
        in_shape=(3, 32, 32),
        choices=choices,
        seconds=43.1,
        versions=(("layerscope", "0.1.0"), ("torch", "2.13.0"), ("python", "3.11.7")),
        command=f"layerscope compare resnet56 {flags} --data digits --seeds {seeds}",
    )
