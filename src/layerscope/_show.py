"""Results know how to show themselves: the one place where a lower room reaches the report, loaded on demand."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from layerscope.errors import LayerscopeError
from layerscope.plain import from_plain, to_plain


def writable(path: str | Path) -> Path:
    """``path``, with its folder made where it did not exist.

    Raises:
        LayerscopeError: nothing can be written there.
    """
    path = Path(path)
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise LayerscopeError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
    return path


class Shown:
    """Mixin of every result that a person looks at: text, notebook, HTML file, JSON."""

    def __str__(self) -> str:
        return str(import_module("layerscope.report").to_text(self))

    def _repr_html_(self) -> str:
        return str(import_module("layerscope.report").to_fragment(self))

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained offline HTML page to ``path`` and return the path."""
        return Path(import_module("layerscope.report").write_html(self, path))

    def to_dict(self) -> dict[str, Any]:
        """Every number as plain values that ``json.dumps`` takes."""
        return dict(to_plain(self))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """What :meth:`to_json` wrote.

        Raises:
            LayerscopeError: no such file, or it holds something else.
        """
        try:
            return from_plain(cls, json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise LayerscopeError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LayerscopeError(f"{path} does not hold a {cls.__name__.lower()} written by layerscope") from error

    def to_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as JSON to ``path`` and return the path."""
        path = writable(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path
