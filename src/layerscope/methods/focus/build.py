"""The library of the focused convolutions: three small files, compiled when they are first needed."""

from __future__ import annotations

from pathlib import Path

from layerscope.compiled import Library, Unit

LIBRARY = Library(
    name="focus",
    what="the focused convolution kernels",
    sources=Path(__file__).parent / "native",
    units=(Unit("isa_{isa}.cpp", isa=True), Unit("entry.cpp", torch=True), Unit("tables.cpp")),
    seconds=10,
)
