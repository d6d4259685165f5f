from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from layerscope import report
from layerscope.errors import LayerscopeError
from layerscope.report import views
from report.reading import check
from report.worlds import LAWS, profile


@dataclass(frozen=True)
class Mine:
    name: str


@dataclass(frozen=True)
class MineToo(Mine):
    pass


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    views.view_of(profile(LAWS[1], layers=3))
    monkeypatch.setattr(views, "_VIEWS", dict(views._VIEWS))


def test_a_registered_type_and_its_children_are_shown(tmp_path: Path) -> None:
    report.register_view(
        Mine, text=lambda m: f"mine: {m.name} ×2", fragment=lambda m: report.paragraph(m.name), title=lambda m: m.name
    )
    assert report.to_text(MineToo("<a>")) == "mine: <a> x2"
    page = check(report.write_html(MineToo("<a>"), tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.text == "<a> · layerscope layerscope <a> <a>"
    assert len(page.all("h1")) == 1


def test_the_last_registration_counts() -> None:
    for word in ("one", "two"):
        report.register_view(Mine, text=lambda m, w=word: w, fragment=lambda m: report.Html(""))
    assert report.to_text(Mine("")) == "two"


def test_a_type_without_a_view_says_what_to_do() -> None:
    with pytest.raises(
        LayerscopeError, match=r"a Mine has no view; known: .*Comparison.*Profile.*Verdict.*register_view"
    ):
        report.to_text(Mine("x"))


def test_the_view_of_a_method_is_imported_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of layerscope.methods.medic finds layerscope.report.medic, which registers it."""
    asked = []

    def spec(name: str) -> object:
        asked.append(name)
        return object() if name == "layerscope.report.medic" else None

    def load(name: str) -> ModuleType:
        report.register_view(Mine, text=lambda m: f"loaded {name}", fragment=lambda m: report.Html(""))
        return ModuleType(name)

    monkeypatch.setattr(views, "find_spec", spec)
    monkeypatch.setattr(views, "import_module", load)
    monkeypatch.setattr(Mine, "__module__", "layerscope.methods.medic.types")
    assert report.to_text(Mine("x")) == "loaded layerscope.report.medic"
    assert asked == ["layerscope.report.medic"]


def test_the_rooms_example_runs() -> None:
    code = textwrap.dedent((report.__doc__ or "").split("::\n\n")[1].split("\n\n")[0])
    names: dict[str, object] = {}
    exec(code, names)
    assert "Good: a steep fall." in check(str(names["document"])).text


def test_every_public_name_resolves() -> None:
    assert sorted(report.__all__) == sorted(set(report.__all__))
    for name in report.__all__:
        assert getattr(report, name).__doc__, name


def test_showing_a_result_imports_no_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from report.worlds import comparison\n"
        "from layerscope import report\n"
        "r = comparison(seeds=1, layers=6)\n"
        "report.to_text(r); report.to_fragment(r); report.print_result(r, sys.stderr)\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'rich' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
