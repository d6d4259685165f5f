"""What each reference network is called, what it takes and what it is, as plain data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope.errors import SpecError, did_you_mean
from layerscope.spec import Spec, Value, parse_spec


@dataclass(frozen=True)
class Parameter:
    """One ``key=value`` of a network's spec."""

    name: str
    default: Value
    line: str
    least: float | None = None
    """Smallest value allowed, for numbers."""
    choices: tuple[str, ...] = ()
    """The words allowed, for words."""

    def check(self, value: Value, where: str) -> Value:
        """``value`` in the type of the default.

        Raises:
            SpecError: wrong type, too small, or not one of the choices.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kind]
            raise SpecError(
                f"{where}: {self.name}={value} is not {wanted} ({self.line}; default {_show(self.default)})"
            )
        if self.choices and value not in self.choices:
            raise SpecError(f"{where}: {self.name}={value}; {did_you_mean(str(value), self.choices)}")
        if self.least is not None and not (isinstance(value, int | float) and value >= self.least):
            raise SpecError(f"{where}: {self.name}={value} must be at least {self.least:g}")
        return value


@dataclass(frozen=True)
class NetInfo:
    """A reference network: name, one line, parameters, and where it comes from."""

    name: str
    line: str
    parameters: tuple[Parameter, ...]
    source: str


def _width(default: int, what: str = "channels of the first stage; later stages scale with it") -> Parameter:
    return Parameter("width", default, what, least=1)


_PAPER = "Lubana, Dick, Tanaka 2021, arXiv 2106.05956"
_STRIDE = Parameter("stem_stride", 1, "stride of the first convolution", least=1)


def _resnet(default_width: int = 32) -> tuple[Parameter, ...]:
    return (
        _width(default_width),
        Parameter("preact", False, "pre-activation blocks (norm and activation before each convolution)"),
        Parameter("skipinit", False, "learnable branch gain that starts at 0, so each block starts as the identity"),
        Parameter("branch_act", False, "post-activation blocks: activation on the branch only, never on the skip path"),
        Parameter("final_norm", False, "pre-activation blocks: norm and activation before the pooling"),
        _STRIDE,
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
            Parameter("depth", 20, "convolutions", least=1),
            Parameter("padding", "zeros", "what surrounds the map", choices=("zeros", "circular")),
        ),
        _PAPER,
    ),
    NetInfo(
        "plain",
        "small plain CNN, three stages, each starts with a stride",
        (_width(16), Parameter("depth", 20, "convolutions, shared out over three stages", least=3)),
        "the pilot network of this package",
    ),
    NetInfo(
        "vgg",
        "VGG-like: convolutions, max-pooling between five stages",
        (
            _width(32),
            Parameter("depth", 13, "convolutions, shared out over five stages", least=5),
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
        (Parameter("blocks", 3, "residual blocks in each of the three stages", least=1), *_resnet(16)),
        "He, Zhang, Ren, Sun 2016, arXiv 1512.03385",
    ),
    NetInfo(
        "mlp",
        "fully connected, the input is flattened",
        (_width(256, "units of every hidden layer"), Parameter("depth", 20, "hidden layers", least=1)),
        "the network of mean-field theory: Poole et al. 2016, arXiv 1606.05340",
    ),
)

_BY_NAME = {net.name: net for net in _NETS}


def names() -> tuple[str, ...]:
    """Every reference network by name."""
    return tuple(_BY_NAME)


def info(name: str) -> NetInfo:
    """One line, parameters and source of a network.

    Raises:
        SpecError: no network of that name; the nearest known names are given.

    >>> info("cfg_20").line
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
    known = {p.name: p for p in info(read.name).parameters}
    for key in read.kwargs:
        if key not in known:
            raise SpecError(f"{read.name} has no parameter {key!r}: {did_you_mean(key, known)}")
    return Spec(read.name, tuple((k, known[k].check(v, str(read))) for k, v in read.params))


def arguments(spec: str | Spec) -> tuple[Spec, dict[str, Value]]:
    """The checked spec and all its parameters, defaults filled in."""
    read = parse(spec)
    return read, {p.name: p.default for p in info(read.name).parameters} | read.kwargs


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
