"""What each data set is called, what it takes and where it comes from, as plain data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope.errors import DataError, did_you_mean
from layerscope.parameters import Param, param
from layerscope.spec import Spec, Value, parse_spec


@dataclass(frozen=True)
class DataInfo:
    """A data set: name, one line, options, and who made it under which licence."""

    name: str
    summary: str
    options: tuple[Param, ...]
    source: str


_IMAGE = (
    param("size", 0, "resize to size x size pixels (bilinear); 0 keeps the size", 0),
    param("pad", 0, "pad with black to pad x pad pixels, before resizing; 0 pads nothing", 0),
    param("channels", 0, "1 (grey) or 3; 0 keeps what the data set has", 0),
    param("limit", 0, "keep only the first so many samples; 0 keeps all", 0),
)
_PATH = param("path", "", "folder or file to read")

_DATA: tuple[DataInfo, ...] = (
    DataInfo(
        "digits",
        "1,797 handwritten digits, 8 x 8 grey, 10 classes; shipped with the package",
        _IMAGE,
        "Alpaydin and Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0",
    ),
    DataInfo(
        "text",
        "54,590 characters of old law, each to foretell the next; shipped with the package, for gpt",
        (
            param("context", 64, "characters in a sample", 1),
            param("limit", 0, "keep only the first so many samples; 0 keeps all", 0),
        ),
        "Declaration of Independence and Constitution of the United States, public domain",
    ),
    DataInfo(
        "gaussian",
        "standard normal noise of any shape with random labels",
        (
            param("shape", "3x32x32", "shape of one sample, such as 3x32x32 or 256"),
            param("classes", 10, "labels are drawn evenly from 0 .. classes-1", 1),
            param("samples", 2048, "samples in each split", 1),
            param("seed", 0, "draws another set"),
        ),
        "drawn when asked for",
    ),
    DataInfo(
        "fashion-mnist",
        "70,000 articles of clothing, 28 x 28 grey, 10 classes; from disk",
        (*_IMAGE, param("download", False, "fetch the files (30 MB, checksums verified) if they are not on disk")),
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
        (_PATH, param("size", 32, "images are cut square about their centre and resized to this", 1), *_IMAGE[2:]),
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
        SpecError: not of the form ``name:key=value,...``, or a value of the wrong type.
        DataError: unknown name or option (nearest known ones are given).

    >>> str(parse("digits:size=32,channels=3"))
    'digits:size=32,channels=3'
    """
    read = parse_spec(spec) if isinstance(spec, str) else spec
    known = {o.name: o for o in info(read.name).options}
    for key in read.kwargs:
        if key not in known:
            raise DataError(f"{read.name} has no option {key!r}: {did_you_mean(key, known)}")
    return Spec(read.name, tuple((k, known[k].read(v, str(read))) for k, v in read.params))


def arguments(spec: str | Spec) -> tuple[Spec, dict[str, Value]]:
    """The checked spec and all its options, defaults filled in."""
    read = parse(spec)
    defaults = {o.name: o.default for o in info(read.name).options if o.default is not None}
    return read, defaults | read.kwargs
