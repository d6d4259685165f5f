"""What each reference network is called, what it takes and what it is, as plain data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope.errors import SpecError, did_you_mean
from layerscope.parameters import Param
from layerscope.parameters import param as _param
from layerscope.spec import Spec, Value, parse_spec


@dataclass(frozen=True)
class NetInfo:
    """A reference network: name, one line, parameters and where it comes from."""

    name: str
    summary: str
    params: tuple[Param, ...]
    source: str
    """Paper."""


def _width(default: int, what: str = "channels of the first stage; later stages scale with it") -> Param:
    return _param("width", default, what, low=1)


BRANCHES = ("plain", "depth", "skipinit", "layerscale", "deepnorm")
_PAPER = "Lubana, Dick, Tanaka 2021, arXiv 2106.05956"
_STRIDE = _param("stem_stride", 1, "stride of the first convolution", low=1)

_PATCH = _param("patch", 4, "patches are patch x patch pixels", low=1)
_PLACEMENT = _param("placement", "pre", "where the norm stands", choices=("pre", "post", "peri"))
_ON_SPHERE = _param(
    "placement",
    "pre",
    "where the norm stands; sphere is nGPT, with norm none",
    choices=("pre", "post", "peri", "sphere"),
)
_ACT = _param("act", "gelu", "activation of the feed-forward layers", choices=("gelu", "relu"))


def _resnet(default_width: int = 32) -> tuple[Param, ...]:
    return (
        _width(default_width),
        _param("preact", False, "pre-activation blocks (norm and activation before each convolution)"),
        _param("skipinit", False, "learnable branch gain that starts at 0, so each block starts as the identity"),
        _param("branch_act", False, "post-activation blocks: activation on the branch only, never on the skip path"),
        _param("final_norm", False, "pre-activation blocks: norm and activation before the pooling"),
        _STRIDE,
    )


def _transformer(*more: Param) -> tuple[Param, ...]:
    return (
        _width(64, "channels of every token"),
        _param("depth", 6, "blocks (two residual adds each)", low=1),
        _param("heads", 4, "attention heads", low=1),
        *more,
        _ON_SPHERE,
        _param("branch", "plain", "how residual branches are scaled", choices=BRANCHES),
        _param("qk_norm", False, "RMS norm of queries and keys"),
        _ACT,
    )


_NETS: tuple[NetInfo, ...] = (
    NetInfo("cfg_10", "plain CNN, 10 convolutions, no skips", (_width(64),), _PAPER),
    NetInfo("cfg_20", "plain CNN, 20 convolutions, no skips", (_width(64),), _PAPER),
    NetInfo("cfg_40", "plain CNN, 40 convolutions, no skips", (_width(64),), _PAPER),
    NetInfo(
        "uniform",
        "plain CNN of one width, no stride: the map keeps its size",
        (
            _width(64, "channels of every layer"),
            _param("depth", 20, "convolutions", low=1),
            _param("padding", "zeros", "what surrounds the map", choices=("zeros", "circular")),
        ),
        _PAPER,
    ),
    NetInfo(
        "plain",
        "small plain CNN, three stages, each starts with a stride",
        (_width(16), _param("depth", 20, "convolutions, shared out over three stages", low=3)),
        "the pilot network of this package",
    ),
    NetInfo(
        "vgg",
        "VGG-like: convolutions, max-pooling between five stages",
        (
            _width(32),
            _param("depth", 13, "convolutions, shared out over five stages", low=5),
        ),
        "Simonyan, Zisserman 2015, arXiv 1409.1556 (without the large linear layers)",
    ),
    *(
        NetInfo(f"resnet{d}", f"CIFAR ResNet of {d} layers ({(d - 2) // 6} blocks a stage)", _resnet(), _PAPER)
        for d in (20, 32, 56, 110)
    ),
    NetInfo(
        "resnet",
        "CIFAR ResNet of any depth",
        (_param("blocks", 3, "residual blocks in each of the three stages", low=1), *_resnet(16)),
        "He, Zhang, Ren, Sun 2016, arXiv 1512.03385",
    ),
    NetInfo(
        "mlp",
        "fully connected, the input is flattened",
        (_width(256, "units of every hidden layer"), _param("depth", 20, "hidden layers", low=1)),
        "the network of mean-field theory: Poole et al. 2016, arXiv 1606.05340",
    ),
    NetInfo(
        "vit",
        "small vision transformer; norm before, after or around each branch",
        _transformer(_PATCH),
        "Dosovitskiy et al. 2021, arXiv 2010.11929, without class token",
    ),
    NetInfo(
        "gpt",
        "small language model over characters, for data text; causal attention",
        _transformer(),
        "Radford et al. 2019, Language models are unsupervised multitask learners",
    ),
    NetInfo(
        "mixer",
        "small MLP-Mixer; norm before, after or around each branch",
        (
            _width(64, "channels of every token"),
            _param("depth", 6, "blocks (two residual adds each)", low=1),
            _PATCH,
            _PLACEMENT,
            _param("branch", "plain", "how residual branches are scaled", choices=BRANCHES[:-1]),
            _ACT,
        ),
        "Tolstikhin et al. 2021, arXiv 2105.01601",
    ),
    NetInfo(
        "convnext",
        "small ConvNeXt: three stages; layer2d is its own norm",
        (
            _width(32),
            _param("blocks", 2, "blocks in each of the three stages", low=1),
            _param("patch", 2, "the stem takes patch x patch pixels", low=1),
            _param("grn", False, "response norm in every block, as in ConvNeXt V2"),
            _param("layerscale", False, "learnable gain per channel of a branch, 1e-6 at the start"),
        ),
        "Liu et al. 2022, arXiv 2201.03545",
    ),
)

_BY_NAME = {net.name: net for net in _NETS}


def names() -> tuple[str, ...]:
    """Every reference network by name."""
    return tuple(_BY_NAME)


def info(name: str) -> NetInfo:
    """Summary, parameters and source of a network.

    Raises:
        SpecError: no network of that name; the nearest known names are given.

    >>> info("cfg_20").summary
    'plain CNN, 20 convolutions, no skips'
    """
    if name not in _BY_NAME:
        raise SpecError(f"no reference network {name!r}: {did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]


def parse(spec: str | Spec) -> Spec:
    """Read a network spec and check its name, its parameters' names, types and ranges.

    Returns:
        The spec with values in their right types, in the order given; defaults are not filled in.

    Raises:
        SpecError: unknown name or parameter (nearest known ones are given), wrong type, out of range.

    >>> str(parse("cfg_20:width=16"))
    'cfg_20:width=16'
    """
    read = parse_spec(spec) if isinstance(spec, str) else spec
    known = {p.name: p for p in info(read.name).params}
    for key in read.kwargs:
        if key not in known:
            raise SpecError(f"{read.name} has no parameter {key!r}: {did_you_mean(key, known)}")
    return Spec(read.name, tuple((k, known[k].read(v, str(read))) for k, v in read.params))


def arguments(spec: str | Spec) -> tuple[Spec, dict[str, Value | None]]:
    """The checked spec and all its parameters, defaults filled in."""
    read = parse(spec)
    return read, {p.name: p.default for p in info(read.name).params} | read.kwargs
