"""The plan of the house, held against the imports that the code really has."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "layerscope"

FLOORS: dict[str, int] = {
    "errors": 0, "spec": 0, "plain": 0, "parameters": 0, "_lazy": 0, "_show": 0, "_attributes": 0, "_bar": 0,
    "inputs": 0, "compiled": 0, "copying": 0, "stored": 0,
    "quantities": 1, "theory": 1,
    "norms": 2, "surgery": 2, "nets": 2, "sources": 2, "data": 2,
    "probe": 3, "training": 3,
    "verdict": 4, "methods": 4,
    "comparison": 5, "report": 5, "study": 5,
    "cli": 6,
    "__main__": 7,
}  # fmt: skip

#: Sideways or upward imports that the plan names (docs/architecture.md).
NAMED = {
    ("surgery", "norms"),
    ("nets", "norms"),
    ("sources", "nets"),
    ("sources", "norms"),
    ("sources", "surgery"),
    ("comparison", "report"),
    ("study", "report"),
    ("_show", "report"),
    ("training", "probe"),
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> list[tuple[str, int]]:
    """Every layerscope module that a file imports, also inside functions and by ``import_module("...")``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node.lineno))
            # `from layerscope import nets` names a room, not an attribute
            if node.module == "layerscope":
                found += [(f"layerscope.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.append((first.value, node.lineno))
    return [(module, line) for module, line in found if module.startswith("layerscope.")]


def files() -> list[Path]:
    return sorted(p for p in SRC.rglob("*.py") if p != SRC / "__init__.py")


def test_every_room_has_a_floor() -> None:
    rooms = {p.relative_to(SRC).parts[0].removesuffix(".py") for p in files()}
    assert rooms <= set(FLOORS), f"rooms without a floor in the plan: {sorted(rooms - set(FLOORS))}"


def test_rooms_import_only_from_floors_below() -> None:
    wrong = []
    for path in files():
        here = path.relative_to(SRC).parts[0].removesuffix(".py")
        for module, line in imports(path):
            there = room_of(module)
            if there == here or there not in FLOORS or (here, there) in NAMED or FLOORS[there] == 0:
                continue
            if FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{path.relative_to(SRC)}:{line} ({here}, floor {FLOORS[here]}) imports {module}")
    assert not wrong, "upward or sideways imports that the plan does not name:\n" + "\n".join(wrong)


def test_no_method_imports_another() -> None:
    wrong = []
    for path in files():
        parts = path.relative_to(SRC).parts
        if parts[0] != "methods" or len(parts) < 3:
            continue
        for module, line in imports(path):
            names = module.split(".")
            if names[1] == "methods" and len(names) > 2 and names[2] != parts[1]:
                wrong.append(f"{path.relative_to(SRC)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_checker_sees_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from layerscope.cli import main\n    from layerscope import study\n")
    assert {module for module, _ in imports(file)} >= {"layerscope.cli", "layerscope.study"}


TORCH_FREE = [
    "layerscope", "layerscope.cli", "layerscope.norms", "layerscope.nets", "layerscope.data", "layerscope.probe",
    "layerscope.probe.records", "layerscope.verdict", "layerscope.verdict.types", "layerscope.report",
    "layerscope.surgery", "layerscope.training", "layerscope.study", "layerscope.theory", "layerscope.quantities",
    "layerscope.sources",
    *(f"layerscope.methods.{p.name}" for p in sorted((SRC / "methods").iterdir()) if (p / "__init__.py").exists()),
]  # fmt: skip


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_rooms_imports_no_torch() -> None:
    code = f"import sys, importlib\nfor m in {TORCH_FREE!r}:\n    importlib.import_module(m)\n"
    run_python(code + "    assert 'torch' not in sys.modules, m")


def test_importing_the_command_modules_imports_no_torch() -> None:
    code = (
        "import sys, importlib\nfrom layerscope.cli import TABLE\n"
        "for module, _ in TABLE.values():\n    importlib.import_module(f'layerscope.cli.{module}')\n"
        "    assert 'torch' not in sys.modules, module"
    )
    run_python(code)


@pytest.mark.parametrize("command", [["--help"], ["norms"], ["nets"], ["data"], ["compare", "--help"]])
def test_light_commands_import_no_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom layerscope.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    assert run_python(code).strip()


def test_no_public_name_is_also_a_submodule() -> None:
    """``layerscope.norms.build`` must mean the function whatever was imported before it."""
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    room = importlib.import_module(name)\n"
        "    for public in getattr(room, '__all__', ()):\n"
        "        try:\n            spec = importlib.util.find_spec(f'{name}.{public}')\n"
        "        except ModuleNotFoundError:\n            continue\n"
        "        assert spec is None, f'{name}.{public} is a module and a public name'\n"
    )
    run_python("import importlib.util\n" + code)
