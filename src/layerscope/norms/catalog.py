"""The normalization choices that come with the package, as a table. Imports no torch.

Order: the layers of "Beyond BatchNorm" (arXiv 2106.05956) first, then those that users expect beside them.
"""

from __future__ import annotations

from layerscope.norms.facts import NormInfo, Param

_HERE = "layerscope.norms."

_EPS = Param("eps", "float", 1e-5, "added to the variance", above=0)
_AFFINE = Param("affine", "bool", True, "learn a weight and bias per channel")
_MOMENTUM = Param("momentum", "float", 0.1, "weight of the newest batch in running statistics", above=0, high=1)
_SIZE = Param("size", "int", None, "channels a group", low=1)
_GROUPS = Param("groups", "int", None, "number of groups", low=1)
_UNBIASED = Param("unbiased", "bool", False, "divide by m - 1, as the code of arXiv 2106.05956 does")

CATALOG: tuple[NormInfo, ...] = (
    NormInfo("none", "no normalization", aliases=("plain", "identity", "no")),
    NormInfo(
        "batch",
        "batch normalization: per channel, over samples and positions",
        (_EPS, _MOMENTUM, _AFFINE, Param("gain", "float", 1.0, "initial weight")),
        ("bn", "batchnorm", "batch_norm", "batchnorm2d"),
        "Ioffe & Szegedy 2015, arXiv 1502.03167",
        norm=_HERE + "batch:BatchNorm",
        uses_batch=True,
    ),
    NormInfo(
        "layer",
        "layer normalization: per sample, over all channels and positions",
        (_EPS, _AFFINE),
        ("ln", "layernorm", "layer_norm"),
        "Ba, Kiros & Hinton 2016, arXiv 1607.06450",
        norm=_HERE + "group:LayerNorm",
        grouping="all",
    ),
    NormInfo(
        "instance",
        "instance normalization: per sample and channel, over positions",
        (_EPS, _AFFINE),
        ("in", "instancenorm", "instance_norm", "instancenorm2d"),
        "Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022",
        norm=_HERE + "group:InstanceNorm",
        grouping="one",
    ),
    NormInfo(
        "group",
        "group normalization: per sample and group of channels",
        (_SIZE, _GROUPS, _EPS, _AFFINE, _UNBIASED),
        ("gn", "groupnorm", "group_norm"),
        "Wu & He 2018, arXiv 1803.08494",
        norm=_HERE + "group:GroupNorm",
        grouping="given",
        example="group:size=8",
    ),
)
