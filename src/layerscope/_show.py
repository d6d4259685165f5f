"""Results know how to show themselves: the one place where a lower room reaches the report, loaded on demand."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from layerscope.plain import to_plain


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

    def to_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as JSON to ``path`` and return the path."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path
