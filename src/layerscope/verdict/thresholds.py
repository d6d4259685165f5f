"""The numbers that turn a measurement into good, caution or bad: one frozen table, in one place.

Where they come from. The paper behind this tool (Lubana, Dick, Tanaka, "Beyond BatchNorm", NeurIPS 2021, arXiv
2106.05956) states the three properties (stable forward growth, dissimilar samples before the classifier, stable
gradients) without cut-offs. The cut-offs are ours; each field says what separates the two sides. ``growth_total``,
``vanish_bad``, ``steps_stuck`` and ``steps_learn`` were chosen on the development part of the committed study, on which
``growth_bad``, ``noise_bad`` and ``steps_worse`` were left as they were (papers/beyond-batchnorm/hit_rate.py cutoffs).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Cut-offs of the four axes. Pass your own to ``judge(..., thresholds=...)``."""

    # F: tail factor of the second moment, per residual block (or per layer of a plain net)
    growth_caution: float = 1.3
    """A linear law gives 1.16 over blocks 5 to 9 of a stage."""
    growth_bad: float = 1.5
    """Doubling at every block gives 2."""
    growth_total: float = 20.0
    """Last over first second moment that a few steps must show. A pre-LN transformer of four blocks grows by 4 to 6;
    two towers read one after the other go up and down."""
    vanish_caution: float = 1e-2
    """Last over first second moment: zero padding alone costs an un-normalized 20-layer net a factor of 4e-3."""
    vanish_bad: float = 1e-4

    jump_bad: float = 50.0
    """One layer without a norm that multiplies the second moment by so much: an MLP of 6 layers with one weight ten
    times too large (x100) learnt nothing in 60 steps at learning rate 0.1."""
    drop_bad: float = 1e-3
    """One that divides it by so much: with one weight 30 times too small (1e-3) the same net learnt half as much, with
    100 times nothing."""

    # I: 1 - cosine between samples, at the classifier input or the last map, whichever is worse
    informative_caution: float = 0.10
    informative_bad: float = 0.03
    stream_caution: float = 0.3
    """On a non-negative residual stream, divided by n^1.5 for n blocks in the last stage: see :meth:`informative`."""
    stream_bad: float = 0.01
    token_cosine_bad: float = 0.95
    """Tokens of one sample this similar at the last block: rank collapse of attention."""

    # B: scale-free gradient, first over last layer
    gradient_caution: float = 10.0
    """BatchNorm lives between 10 and 60 in a plain 20-layer net, and trains."""
    gradient_bad: float = 100.0
    """InstanceNorm gives 200 there, and does not at a normal learning rate."""
    gradient_bad_residual: float = 1e4
    """On a residual stream every block can be trained from the loss side, so the alarm is set higher."""
    gradient_vanish_caution: float = 0.03
    gradient_vanish_bad: float = 1e-4

    # N: batch-noise ratio nu at the training batch size
    noise_caution: float = 0.5
    noise_bad: float = 1.5
    """Above 1 an image's representation depends more on its batch companions than on the image."""
    # a few real steps
    steps_worse: float = 1.5
    """Loss at the end over the first one, above which training counts as breaking."""
    steps_stuck: float = 0.02
    """Share of the loss that must be gone."""
    steps_learn: float = 0.3
    """Share whose loss outweighs what initialization looked like."""

    smallest_set: int = 3
    """Statistics over this many elements or fewer: the gradient of a normalized set of three diverges."""

    def informative(self, stream_blocks: int | None) -> tuple[float, float]:
        """The caution and bad levels of axis I.

        A post-activation residual stream sums non-negative branches: what all samples share adds up block by block
        while their differences partly cancel, so 1 - cosine falls with the number n of blocks of the last stage even
        for networks that train well. Measured with BatchNorm and both EvoNorms in ResNets with n = 4 and n = 9 it
        falls as n^-1.4 to n^-1.7; the cut-off follows n^-1.5.

        Args:
            stream_blocks: n, or None for every other network.
        """
        if not stream_blocks:
            return self.informative_caution, self.informative_bad
        scale = stream_blocks**-1.5
        return min(self.informative_caution, self.stream_caution * scale), self.stream_bad * scale


DEFAULT = Thresholds()
