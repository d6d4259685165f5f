"""What each data set is called, what it takes and where it comes from, as plain data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope.errors import DataError, did_you_mean
from layerscope.spec import Spec, Value, parse_spec


@dataclass(frozen=True)
class Option:
    """One ``key=value`` of a data spec."""

    name: str
    default: Value
    text: str
    least: int | None = None
    """Smallest value allowed, for numbers."""

    def check(self, value: Value, where: str) -> Value:
        """``value``, if it has the type of the default and is not too small.

        Raises:
            DataError: it has not, or it is.
        """
        if type(self.default) is str:
            value = str(value)
        if type(value) is not type(self.default):
            wanted = "true or false" if type(self.default) is bool else "a whole number"
            raise DataError(f"{where}: {self.name}={value} is not {wanted} ({self.text})")
        if self.least is not None and isinstance(value, int) and value < self.least:
            raise DataError(f"{where}: {self.name}={value} must be at least {self.least}")
        return value


@dataclass(frozen=True)
class DataInfo:
    """A data set: name, one line, options, and who made it under which licence."""

    name: str
    summary: str
    options: tuple[Option, ...]
    source: str


_IMAGE = (
    Option("size", 0, "resize to size x size pixels (bilinear); 0 keeps the size", 0),
    Option("pad", 0, "pad with black to pad x pad pixels, before resizing; 0 pads nothing", 0),
    Option("channels", 0, "1 (grey) or 3; 0 keeps what the data set has", 0),
    Option("limit", 0, "keep only the first so many samples; 0 keeps all", 0),
)
_PATH = Option("path", "", "folder or file to read")

_DATA: tuple[DataInfo, ...] = (
    DataInfo(
        "digits",
        "1,797 handwritten digits, 8 x 8 grey, 10 classes; shipped with the package",
        _IMAGE,
        "Alpaydin and Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0",
    ),
    DataInfo(
        "gaussian",
        "standard normal noise of any shape with random labels",
        (
            Option("shape", "3x32x32", "shape of one sample, such as 3x32x32 or 256"),
            Option("classes", 10, "labels are drawn evenly from 0 .. classes-1", 1),
            Option("samples", 2048, "samples in each split", 1),
            Option("seed", 0, "draws another set"),
        ),
        "drawn when asked for",
    ),
    DataInfo(
        "fashion-mnist",
        "70,000 articles of clothing, 28 x 28 grey, 10 classes; from disk",
        (*_IMAGE, Option("download", False, "fetch the files (30 MB, checksums verified) if they are not on disk")),
        "Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747, MIT licence",
    ),
    DataInfo(
        "cifar10",
        "60,000 photographs, 32 x 32 colour, 10 classes; from disk",
        _IMAGE,
        "Krizhevsky 2009, Learning multiple layers of features from tiny images",
    ),
    DataInfo(
        "cifar100",
        "60,000 photographs, 32 x 32 colour, 100 classes; from disk",
        _IMAGE,
        "Krizhevsky 2009, Learning multiple layers of features from tiny images",
    ),
    DataInfo(
        "imagefolder",
        "your own images: path/class/image.png, or path/train/class/image.png",
        (_PATH, Option("size", 32, "images are cut square about their centre and resized to this", 1), *_IMAGE[2:]),
        "yours",
    ),
    DataInfo(
        "npz",
        "your own arrays: an .npz file with x [N, ...] (uint8 or float) and y [N]",
        (_PATH, *_IMAGE),
        "yours",
    ),
)

_BY_NAME = {data.name: data for data in _DATA}


def names() -> tuple[str, ...]:
    """Every data set by name."""
    return tuple(_BY_NAME)


def info(name: str) -> DataInfo:
    """Summary, options and source of a data set.

    Raises:
        DataError: no data set of that name; the nearest known names are given.
    """
    if name not in _BY_NAME:
        raise DataError(f"no data set {name!r}: {did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]


def parse(spec: str | Spec) -> Spec:
    """Read a data spec and check its name and options.

    Raises:
        SpecError: not of the form ``name:key=value,...``.
        DataError: unknown name or option (nearest known ones are given), or a value of the wrong type.

    >>> str(parse("digits:size=32,channels=3"))
    'digits:size=32,channels=3'
    """
    read = parse_spec(spec) if isinstance(spec, str) else spec
    known = {o.name: o for o in info(read.name).options}
    for key in read.kwargs:
        if key not in known:
            raise DataError(f"{read.name} has no option {key!r}: {did_you_mean(key, known)}")
    return Spec(read.name, tuple((k, known[k].check(v, str(read))) for k, v in read.params))


def arguments(spec: str | Spec) -> tuple[Spec, dict[str, Value]]:
    """The checked spec and all its options, defaults filled in."""
    read = parse(spec)
    return read, {o.name: o.default for o in info(read.name).options} | read.kwargs
