"""Measures of activations and gradients as pure functions: tensors in, float64 out.

They know no module and no hook. Axis letters: N samples, C channels, S positions, D features, L layers. What needs
only numbers over depth (``growth``, ``gradient``) imports no torch.

::

    from layerscope import quantities as q
    t = q.tables(x)                                # x [N, C, H, W], reduced once
    q.activation_variance(t), q.second_moment(t)   # and every normalizer's own statistics
    q.mean_cosine(x.flatten(1))                    # 1: samples have become indistinguishable
    q.stable_rank(q.eigenvalues(q.cosine_gram(x.flatten(1))))

Source of the main measures: Lubana, Dick, Tanaka 2021, "Beyond BatchNorm" (arXiv 2106.05956).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.quantities.gradient import backward_rate as backward_rate
    from layerscope.quantities.gradient import comparable_gradient as comparable_gradient
    from layerscope.quantities.gradient import first_last_ratio as first_last_ratio
    from layerscope.quantities.gradient import scaled_gradient as scaled_gradient
    from layerscope.quantities.growth import Growth as Growth
    from layerscope.quantities.growth import fit_growth as fit_growth
    from layerscope.quantities.growth import tail_factor as tail_factor
    from layerscope.quantities.health import dead_samples as dead_samples
    from layerscope.quantities.health import dead_share as dead_share
    from layerscope.quantities.health import nonfinite_share as nonfinite_share
    from layerscope.quantities.health import saturation_share as saturation_share
    from layerscope.quantities.health import zero_share as zero_share
    from layerscope.quantities.moments import Tables as Tables
    from layerscope.quantities.moments import activation_variance as activation_variance
    from layerscope.quantities.moments import batch_normalized as batch_normalized
    from layerscope.quantities.moments import cancellation as cancellation
    from layerscope.quantities.moments import channel_moments as channel_moments
    from layerscope.quantities.moments import mean_value as mean_value
    from layerscope.quantities.moments import normalizer_statistics as normalizer_statistics
    from layerscope.quantities.moments import preactivation_std as preactivation_std
    from layerscope.quantities.moments import second_moment as second_moment
    from layerscope.quantities.moments import tables as tables
    from layerscope.quantities.noise import batch_noise as batch_noise
    from layerscope.quantities.noise import batch_noise_from_pairs as batch_noise_from_pairs
    from layerscope.quantities.noise import batch_noise_of as batch_noise_of
    from layerscope.quantities.noise import share_exchanged as share_exchanged
    from layerscope.quantities.rank import centred_gram as centred_gram
    from layerscope.quantities.rank import effective_rank as effective_rank
    from layerscope.quantities.rank import eigenvalues as eigenvalues
    from layerscope.quantities.rank import participation_ratio as participation_ratio
    from layerscope.quantities.rank import stable_rank as stable_rank
    from layerscope.quantities.similarity import cosine_gram as cosine_gram
    from layerscope.quantities.similarity import dead_rows as dead_rows
    from layerscope.quantities.similarity import mean_cosine as mean_cosine
    from layerscope.quantities.similarity import pooled_cosine as pooled_cosine
    from layerscope.quantities.similarity import token_cosine as token_cosine
    from layerscope.quantities.spread import relative_spread as relative_spread

_NAMES = {
    "gradient": ("backward_rate", "comparable_gradient", "first_last_ratio", "scaled_gradient"),
    "growth": ("Growth", "fit_growth", "tail_factor"),
    "health": ("dead_samples", "dead_share", "nonfinite_share", "saturation_share", "zero_share"),
    "moments": (
        "Tables",
        "activation_variance",
        "batch_normalized",
        "cancellation",
        "channel_moments",
        "mean_value",
        "normalizer_statistics",
        "preactivation_std",
        "second_moment",
        "tables",
    ),
    "noise": ("batch_noise", "batch_noise_from_pairs", "batch_noise_of", "share_exchanged"),
    "rank": ("centred_gram", "effective_rank", "eigenvalues", "participation_ratio", "stable_rank"),
    "similarity": (
        "cosine_gram",
        "dead_rows",
        "mean_cosine",
        "pooled_cosine",
        "token_cosine",
    ),
    "spread": ("relative_spread",),
}

__getattr__, __dir__, __all__ = lazy(__name__, {name: module for module, names in _NAMES.items() for name in names})
