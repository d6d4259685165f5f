"""Graphs and arrays as bytes: the ``npz`` format with pickling refused."""

from __future__ import annotations

import io
import json

import numpy as np
from numpy.typing import NDArray

from layerscope.methods.encrypted.errors import EnvelopeError
from layerscope.methods.encrypted.graph import Graph


def graph_to_bytes(graph: Graph) -> bytes:
    """The integer network as an ``npz`` archive."""
    structure, arrays = graph.to_parts()
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(structure, sort_keys=True).encode(), np.uint8)
    np.savez_compressed(buffer, structure=text, **arrays)  # type: ignore[arg-type]  # numpy's stub lists allow_pickle
    return buffer.getvalue()


def graph_from_bytes(data: bytes) -> Graph:
    """The inverse of :func:`graph_to_bytes`.

    Raises:
        EnvelopeError: the bytes hold no integer network.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
        structure = json.loads(arrays.pop("structure").tobytes())
        return Graph.from_parts(structure, arrays)
    except (ValueError, KeyError, OSError) as error:
        raise EnvelopeError(f"these bytes hold no integer network ({error})") from error


def array_to_bytes(x: NDArray[np.int64]) -> bytes:
    """An int64 array with its shape."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(x, "<i8"), allow_pickle=False)
    return buffer.getvalue()


def array_from_bytes(data: bytes) -> NDArray[np.int64]:
    """The inverse of :func:`array_to_bytes`.

    Raises:
        EnvelopeError: the bytes hold no array.
    """
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.int64)
    except (ValueError, OSError, EOFError) as error:
        raise EnvelopeError(f"these bytes hold no array ({error})") from error
