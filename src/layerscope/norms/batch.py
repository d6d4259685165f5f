"""Batch normalization, on torch's own kernel. Ioffe & Szegedy 2015, arXiv 1502.03167."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.norms.base import channel_axis, require_several


class BatchNorm(_BatchNorm):
    """Batch normalization: y = weight * (x - mean) / sqrt(var + eps) + bias, statistics over samples and positions.

    One mean and one biased variance per channel over (N, S) in training mode, running ones in evaluation mode. It is
    torch's batch norm (also in what it stores: the running variance is the unbiased one) for [N, C], tokens [N, S, C]
    and maps alike, so that tools which look for torch's class find it.

    Args:
        channels: number of channels C.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
        affine: learn weight and bias.
        gain: initial value of the weight; sqrt(K) makes the control for a mixture norm of K components.

    Raises:
        NormInputError: in training mode, one value per channel (a batch of one vector).
    """

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum, affine=affine)
        self.gain = gain
        self.reset_parameters()

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.num_features

    def reset_parameters(self) -> None:
        """Weight ``gain``, bias zero, running statistics forgotten."""
        super().reset_parameters()
        if self.affine:
            nn.init.constant_(self.weight, getattr(self, "gain", 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        channel_axis(x, self.num_features, f"BatchNorm({self.num_features})")
        if self.training:
            count = math.prod(x.shape) // self.num_features
            remedy = "use a larger batch, eval() mode, or a norm without batch statistics such as group"
            require_several(count, f"BatchNorm({self.num_features}) in training mode", "the batch", remedy)
        if x.ndim == 3:
            return super().forward(x.flatten(0, 1)).view_as(x)
        return super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Torch's hook for its rank check; :meth:`forward` has checked the shape already."""
