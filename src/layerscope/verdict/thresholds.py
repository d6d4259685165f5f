"""The numbers that turn a measurement into good, caution or bad: one frozen table, in one place.

Where they come from. The paper behind this tool (Lubana, Dick, Tanaka, "Beyond BatchNorm", NeurIPS 2021, arXiv
2106.05956) states the three properties (stable forward growth, dissimilar samples before the classifier, stable
gradients) without cut-offs. The cut-offs are ours; each field says what separates the two sides. ``growth_total``,
``vanish_bad``, ``steps_stuck`` and ``steps_learn`` were chosen on the development part of the committed study, on which
``growth_bad`` and ``steps_worse`` were left as they were (papers/beyond-batchnorm/hit_rate.py cutoffs). Those of axes
I and N, the tokens', ``gradient_law`` and ``update_silent`` come from that part and from three small studies beside it
(shallow.toml, noise.toml, tokens.toml).
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

    # I: 1 - cosine between samples, at the last map and, once pooled, at the classifier input
    informative_caution: float = 0.10
    informative_bad: float = 0.03
    pooled_caution: float = 0.02
    """Plain nets of 3 to 8 layers have 0.026 to 0.3 after pooling and train; BatchNorm over 16 x 16 maps has 0.014 to
    0.022 and learns a third as much."""
    pooled_bad: float = 0.01
    """InstanceNorm has 0.005, GroupNorm and LayerNorm over large maps less."""
    stream_caution: float = 0.3
    """On a non-negative residual stream, divided by n^1.5 for n blocks in the last stage: see :meth:`informative`."""
    stream_bad: float = 0.01
    token_cosine_bad: float = 0.82
    """Tokens of one sample this similar at the last block, where every token is classified: rank collapse of attention.
    Language models that put the norm after the addition train with 0.51 (4 blocks), train slowly with 0.80 (6), and
    learn no more than the letters' frequencies with 0.84 to 0.91 (8) and 0.97 (12), at a fifth of the rate and with
    warm-up as well."""
    token_cosine_bad_pooled: float = 0.985
    """The same where the mean token is classified: encoders over the rows of a digit train with 0.88 to 0.98, and not
    with 0.999."""
    token_shrinks: float = 5.0
    """And 1 - cosine must be this many times smaller than after the first block."""

    # B: scale-free gradient, first over last layer
    gradient_caution: float = 10.0
    """BatchNorm lives between 10 and 60 in a plain 20-layer net, and trains."""
    gradient_bad: float = 100.0
    """InstanceNorm gives 200 there, and does not at a normal learning rate."""
    gradient_law: float = 1.2112
    """Per layer of a plain net: BatchNorm's own law, sqrt(pi / (pi - 1)); see :meth:`gradient`."""
    gradient_bad_residual: float = 1e4
    """On a residual stream every block can be trained from the loss side, so the alarm is set higher."""
    gradient_vanish_caution: float = 0.03
    gradient_vanish_bad: float = 1e-4
    update_silent: float = 1e-5
    """Largest gradient of a weight over the weight itself (and over the loss, where that is below 1). No training with
    less than 5e-3 got clear of chance; what is pooled right behind InstanceNorm over tokens is zero, and has 3e-8."""

    # N: batch-noise ratio nu at the training batch size
    noise_caution: float = 0.5
    """Above 1 an image's representation depends more on its batch companions than on the image."""
    noise_bad: float = 0.375
    """Nu over the batch size: a step averages the noise over the batch, so that 1.5 is the limit at batch size 4 and 12
    at 32. BatchNorm MLPs of 6 to 14 layers at batch sizes 4 to 32 learn 0.6 to 0.94 below it and 0.2 to 0.5 above 1,
    whatever their depth."""

    # a few real steps
    steps_worse: float = 1.5
    """Loss at the end over the first one, above which training counts as breaking."""
    steps_stuck: float = 0.02
    """Share of the loss that must be gone."""
    steps_learn: float = 0.3
    """Share whose loss outweighs what initialization looked like."""

    smallest_set: int = 3
    """Statistics over this many elements or fewer: the gradient of a normalized set of three diverges."""

    def informative(self, stream_blocks: int | None, *, pooled: bool = False) -> tuple[float, float]:
        """The caution and bad levels of axis I.

        A post-activation residual stream sums non-negative branches: what all samples share adds up block by block
        while their differences partly cancel, so 1 - cosine falls with the number n of blocks of the last stage even
        for networks that train well. Measured with BatchNorm and both EvoNorms in ResNets with n = 4 and n = 9 it
        falls as n^-1.4 to n^-1.7; the cut-off follows n^-1.5.

        Args:
            stream_blocks: n, or None for every other network.
            pooled: of the pooled map, not of the last one.
        """
        caution, bad = self.informative_caution, self.informative_bad
        if pooled:
            caution, bad = self.pooled_caution, self.pooled_bad
        if not stream_blocks:
            return caution, bad
        scale = stream_blocks**-1.5
        return min(caution, self.stream_caution * scale), min(bad, self.stream_bad * scale)

    def gradient(self, layers: int, *, residual: bool) -> tuple[float, float]:
        """The caution and bad levels of a gradient that grows toward the input.

        A plain net of BatchNorm layers multiplies the gradient by 1.21 at each and trains, so up to three times that,
        over all layers, is no explosion.

        Args:
            layers: of a plain net, or blocks.
            residual: they are the blocks of a residual stream, each of which can be trained from the loss side.
        """
        if residual:
            return self.gradient_bad, self.gradient_bad_residual
        law = 3.0 * self.gradient_law ** min(max(layers - 1, 0), 100)
        return self.gradient_caution, max(self.gradient_bad, min(law, self.gradient_bad_residual))


DEFAULT = Thresholds()
