"""The normalization choices that come with the package, as a table. Imports no torch.

Order: the layers of "Beyond BatchNorm" (arXiv 2106.05956) first, then those that users expect beside them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from layerscope.norms.facts import NormInfo, Param

#: 1 / std of relu(z), z ~ N(0, 1): sqrt(2 pi / (pi - 1)).
RELU_GAIN = math.sqrt(2 * math.pi / (math.pi - 1))

#: What a mixture's posteriors belong to.
POSTERIORS = ("joint", "channel", "sample")

_HERE = "layerscope.norms."

_EPS = Param("eps", "float", 1e-5, "added to the variance", above=0)
_AFFINE = Param("affine", "bool", True, "learn a weight and bias per channel")
_MOMENTUM = Param("momentum", "float", 0.1, "weight of the newest batch in running statistics", above=0, high=1)
_SIZE = Param("size", "int", None, "channels a group", low=1)
_GROUPS = Param("groups", "int", None, "number of groups", low=1)
_ALPHA = Param("alpha", "float", 0.5, "initial slope at zero", above=0)
#: Says something of the whole network, so no layer takes it; surgery does.
_WHERE = Param("where", "str", "all", "which norms are replaced: 2nd, last, 0+3, stage:1 or layer1.*", slots=())
_UNBIASED = Param("unbiased", "bool", False, "divide by m - 1, as the code of arXiv 2106.05956 does")

CATALOG: tuple[NormInfo, ...] = (
    NormInfo("none", "no normalization", aliases=("plain", "identity", "no")),
    NormInfo(
        "batch",
        "batch normalization: per channel, over samples and positions",
        (_EPS, _MOMENTUM, _AFFINE, Param("gain", "float", 1.0, "initial weight"), _WHERE),
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
    NormInfo(
        "frn",
        "filter response normalization with its thresholded linear unit",
        (_EPS, Param("learn_eps", "bool", True, "eps is learned; needed for 1x1 maps")),
        ("filter-response", "frn-tlu"),
        "Singh & Krishnan 2020, arXiv 1911.09737",
        norm=_HERE + "frn:FilterResponseNorm",
        activation=_HERE + "frn:tlu",
        owns_activation=True,
        grouping="one",
    ),
    NormInfo(
        "variance",
        "variance normalization: divides by the batch deviation, does not centre",
        (_EPS, _MOMENTUM, _AFFINE),
        ("vn", "variancenorm", "variance-norm"),
        "Lubana, Dick & Tanaka 2021, arXiv 2106.05956",
        norm=_HERE + "running:VarianceNorm",
        uses_batch=True,
    ),
    NormInfo(
        "evonorm-b0",
        "EvoNorm-B0: batch and instance variance with a built-in activation",
        tuple(replace(p, slots=("activation",)) for p in (_EPS, _MOMENTUM, _UNBIASED)),
        ("evob0", "evonormb0", "evonorm_b0"),
        "Liu et al. 2020, arXiv 2004.02967",
        activation=_HERE + "evonorm:evonorm_b0",
        uses_batch=True,
        owns_activation=True,
    ),
    NormInfo(
        "evonorm-s0",
        "EvoNorm-S0: group variance with a built-in activation (32 groups unless given)",
        tuple(replace(p, slots=("activation",)) for p in (_SIZE, _GROUPS, _EPS, _UNBIASED)),
        ("evos0", "evonorms0", "evonorm_s0"),
        "Liu et al. 2020, arXiv 2004.02967",
        activation=_HERE + "evonorm:evonorm_s0",
        owns_activation=True,
        grouping="given",
        groups_default=32,
    ),
    NormInfo(
        "weight",
        "weight normalization with scaled ReLU",
        (
            replace(_EPS, text="added to the filter norm", slots=("weight",)),
            Param("scaled", "bool", True, "make the activation mean 0, variance 1", slots=("activation",)),
        ),
        ("wn", "weightnorm", "weight_norm"),
        "Salimans & Kingma 2016, arXiv 1602.07868; Arpit et al. 2016, arXiv 1603.01431",
        activation=_HERE + "weights:scaled_activation",
        weight=_HERE + "weights:weight_norm",
        needs_bias=True,
        owns_activation=True,
    ),
    NormInfo(
        "sws",
        "scaled weight standardization",
        (
            Param("gain", "float", RELU_GAIN, "norm of a filter; 1.7129 suits ReLU", above=0, slots=("weight",)),
            replace(_EPS, text="added to the filter deviation", slots=("weight",)),
        ),
        ("scaled-ws", "scaled-weight-standardization"),
        "Brock et al. 2021, arXiv 2101.08692",
        weight=_HERE + "weights:scaled_weight_standardization",
        needs_bias=True,
    ),
    NormInfo(
        "weight-centred",
        "weight centring: every filter has mean zero",
        aliases=("wc", "weight-centered", "weight-centring"),
        source="Huang et al. 2017, ICCV (centred weight normalization)",
        weight=_HERE + "weights:weight_centring",
    ),
    NormInfo(
        "mean",
        "mean centring: subtracts the batch mean, does not rescale",
        (_MOMENTUM, replace(_AFFINE, text="learn a bias per channel")),
        ("mean-centring", "mean-centering", "mean-only"),
        "Salimans & Kingma 2016, arXiv 1602.07868, section 3",
        norm=_HERE + "running:MeanNorm",
        uses_batch=True,
    ),
    NormInfo(
        "rms",
        "RMSNorm: per position over channels, no centring",
        (_EPS, Param("p", "float", 1.0, "share of the channels that is measured", above=0, high=1)),
        ("rmsnorm", "rms-norm"),
        "Zhang & Sennrich 2019, arXiv 1910.07467",
        norm=_HERE + "rms:RMSNorm",
        grouping="all",
    ),
    NormInfo(
        "layer2d",
        "layer normalization per position over channels, as in ConvNeXt",
        (_EPS, _AFFINE),
        ("ln2d", "layernorm2d", "channels-last-ln"),
        "Liu et al. 2022, arXiv 2201.03545",
        norm=_HERE + "rms:LayerNorm2d",
        grouping="all",
    ),
    NormInfo(
        "scale",
        "ScaleNorm: unit length over channels times one learned scalar",
        (replace(_EPS, text="smallest length"),),
        ("scalenorm",),
        "Nguyen & Salazar 2019, arXiv 1910.05895",
        norm=_HERE + "rms:ScaleNorm",
        grouping="all",
    ),
    NormInfo(
        "ghost",
        "Ghost BatchNorm: batch normalization on parts of the batch",
        (Param("size", "int", 32, "samples in a ghost batch", low=1), _EPS, _MOMENTUM),
        ("ghostbn", "ghost-bn", "gbn"),
        "Hoffer et al. 2017, arXiv 1705.08741",
        norm=_HERE + "ghost:GhostBatchNorm",
        uses_batch=True,
    ),
    NormInfo(
        "renorm",
        "Batch Renorm: batch statistics pulled to the running ones",
        (
            _EPS,
            _MOMENTUM,
            Param("rmax", "float", 3.0, "limit of the scale correction", low=1),
            Param("dmax", "float", 5.0, "limit of the shift correction", low=0),
            Param("ramp", "int", 1000, "batches until the limits are reached", low=0),
        ),
        ("batch-renorm", "brn"),
        "Ioffe 2017, arXiv 1702.03275",
        norm=_HERE + "renorm:BatchRenorm",
        uses_batch=True,
    ),
    NormInfo(
        "switchable",
        "Switchable Norm: learned mixture of instance, layer and batch statistics",
        (_EPS, _MOMENTUM),
        ("sn", "switchablenorm"),
        "Luo et al. 2018, arXiv 1806.10779",
        norm=_HERE + "switchable:SwitchableNorm",
        uses_batch=True,
    ),
    NormInfo(
        "grn",
        "Global Response Norm: channel competition; an identity at initialization",
        (replace(_EPS, default=1e-6, text="added to the mean response"),),
        ("global-response",),
        "Woo et al. 2023, arXiv 2301.00808",
        norm=_HERE + "pointwise:GlobalResponseNorm",
    ),
    NormInfo(
        "dyt",
        "Dynamic Tanh: a learned squashing in place of a norm",
        (_ALPHA,),
        ("dynamic-tanh",),
        "Zhu et al. 2025, arXiv 2503.10622",
        norm=_HERE + "pointwise:DynamicTanh",
    ),
    NormInfo(
        "derf",
        "Dynamic erf: a learned squashing in place of a norm",
        (_ALPHA,),
        ("dynamic-erf",),
        "Chen et al. 2025, arXiv 2512.10938",
        norm=_HERE + "pointwise:DynamicErf",
    ),
    NormInfo(
        "proxy",
        "Proxy Norm: layer or group norm, then channels re-centred by a proxy variable",
        (
            _SIZE,
            _GROUPS,
            _EPS,
            Param("smooth", "float", 0.03, "eps of the proxy variance", above=0, slots=("activation",)),
            Param("points", "int", 256, "quantiles of the proxy", low=2, slots=("activation",)),
        ),
        ("proxynorm", "pn"),
        "Labatie et al. 2021, arXiv 2106.03743",
        norm=_HERE + "proxy:proxy_base",
        activation=_HERE + "proxy:proxy_activation",
        owns_activation=True,
        grouping="given",
        groups_default=1,
    ),
    NormInfo(
        "ws-group",
        "weight standardization, then group normalization",
        (
            _SIZE,
            _GROUPS,
            _EPS,
            Param("weight_eps", "float", 1e-5, "added to the filter deviation", above=0, slots=("weight",)),
        ),
        ("ws-gn", "ws"),
        "Qiao et al. 2019, arXiv 1903.10520",
        norm=_HERE + "group:GroupNorm",
        weight=_HERE + "weights:weight_standardization",
        grouping="given",
        example="ws-group:size=8",
    ),
    NormInfo(
        "mixture",
        "Mixture Normalization: a Gaussian mixture in place of batch norm's Gaussian",
        (
            Param("k", "int", 3, "components", low=1),
            Param("posterior", "str", "joint", "per position, per channel or per image", choices=POSTERIORS),
            Param("temperature", "str", "channels", "divides the log posterior: 'channels' or a number"),
            Param("scale", "str", "fisher", "1/sqrt(share) or 1/sqrt(K share)", choices=("fisher", "unit")),
            _MOMENTUM,
            _EPS,
            Param("seed", "int", 0, "of the seeding's own random generator"),
            _WHERE,
        ),
        ("mn", "mixturenorm"),
        "Kalayeh & Shah 2018, arXiv 1806.02892",
        norm=_HERE + "mixture_kinds:mixture_norm",
        uses_batch=True,
    ),
    NormInfo(
        "mode",
        "Mode Normalization: a learned gate chooses among several batch statistics",
        (Param("k", "int", 2, "modes", low=1), _MOMENTUM, _EPS, _WHERE),
        ("modenorm",),
        "Deecke, Murray & Bilen 2019, arXiv 1810.05466",
        norm=_HERE + "mode:ModeNorm",
        uses_batch=True,
    ),
)
