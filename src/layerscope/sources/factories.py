"""Networks from the user's own code: ``file.py:factory``, ``pkg.mod:factory``, or any callable."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from layerscope.errors import LayerscopeError, SourceError, did_you_mean

_loaded: dict[tuple[Path, int], ModuleType] = {}


def from_file(text: str) -> Callable[..., Any]:
    """The function that ``path/to/file.py:factory`` names; the file is run once, with its folder importable.

    Raises:
        SourceError: no such file, it raises while it is run, or it has no such function.
    """
    name, colon, factory = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    path = Path(name).expanduser()
    if not path.is_file():
        here = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = f"; {did_you_mean(str(path), here)}" if here else ""
        raise SourceError(f"there is no file {name!r} (looked in {Path.cwd()}){hint}")
    path = path.resolve()
    key = (path, path.stat().st_mtime_ns)
    if key not in _loaded:
        with _importable(path.parent):
            _loaded[key] = _run(path)
    return _function(_loaded[key], factory if colon else "", str(name))


def from_package(text: str) -> Callable[..., Any]:
    """The function that ``package.module:factory`` names; the working directory is importable.

    Raises:
        SourceError: the module cannot be imported, or has no such function.
    """
    name, _, factory = text.partition(":")
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                raise SourceError(f"there is no module {name!r} to import (no {error.name!r})") from error
            raise SourceError(f"importing {name!r} failed: {_where(error)}") from error
        except (Exception, SystemExit) as error:
            raise SourceError(f"importing {name!r} failed: {_where(error)}") from error
    return _function(module, factory, name)


def is_file(text: str) -> bool:
    """Whether this names code in a file, ``path/to/file.py`` or ``path/to/file.py:function``."""
    return text.endswith(".py") or ".py:" in text


def data_from(data: Any) -> Any:
    """What the function returns that ``file.py:function`` names; all other data as they are.

    Raises:
        SourceError: the file or function cannot be found or run, or returns nothing.
    """
    if not isinstance(data, str) or not is_file(data):
        return data
    made, _ = _made(from_file(data), data, {})
    if made is None:
        raise SourceError(f"{data} returned {_a(made)}, and no data (x, y)")
    return made


def call(factory: Callable[..., Any], what: str, offers: dict[str, Any]) -> tuple[nn.Module, frozenset[str]]:
    """Call a factory with those of the offered keyword arguments that its signature names.

    Returns:
        The network, and the names of the arguments that it took.

    Raises:
        SourceError: it needs arguments that we do not have, it raises, or it returns no module.
    """
    module, taken = _made(factory, what, offers)
    if not isinstance(module, nn.Module):
        raise SourceError(f"{what} returned {_a(module)}, not a torch.nn.Module")
    return module, taken


def _made(factory: Callable[..., Any], what: str, offers: dict[str, Any]) -> tuple[Any, frozenset[str]]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some builtins have no signature: call them with nothing
        parameters = {}  # type: ignore[assignment]  # a read-only mapping there, an empty dict here
    takes = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {n: v for n, v in offers.items() if n in takes}
    missing = [
        n
        for n, p in parameters.items()
        if n not in given and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        may = "a factory may take norm, in_shape and classes; give everything else a default"
        raise SourceError(
            f"{what} needs the argument(s) {', '.join(missing)}: "
            f"{may if offers else 'a function that makes data takes none, so give them defaults'}"
        )
    try:
        return factory(**given), frozenset(given)
    except LayerscopeError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(f"{what} raised {_where(error)}") from error


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"layerscope_source_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        with _no_arguments(path):
            spec.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[spec.name]
        raise SourceError(
            f"running {str(path)!r} ended with sys.exit({error.code!r}): it must be importable, so put what it does as "
            "a script under  if __name__ == '__main__':"
        ) from error
    except Exception as error:
        del sys.modules[spec.name]
        raise SourceError(f"running {str(path)!r} failed: {_where(error)}") from error
    return module


@contextmanager
def _no_arguments(path: Path) -> Iterator[None]:
    """A script that reads its command line while it is imported sees none, not ours."""
    before, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = before


def _function(module: ModuleType, name: str, shown: str) -> Callable[..., Any]:
    own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    own = [n for n in own if getattr(getattr(module, n), "__module__", None) == module.__name__]
    if not name:
        raise SourceError(f"{shown!r} needs a function to call, {shown}:factory; it has {', '.join(own) or 'none'}")
    value = getattr(module, name, None)
    if value is None:
        raise SourceError(f"{shown!r} has no {name!r}; {did_you_mean(name, own) if own else 'it defines no function'}")
    if isinstance(value, nn.Module):
        return lambda: copy.deepcopy(value)
    if not callable(value):
        raise SourceError(f"{shown}:{name} is {_a(value)}, not a function that makes a network")
    return value  # type: ignore[no-any-return]  # any callable is what the caller asked for


def _where(error: BaseException) -> str:
    """The error, and the deepest line of code it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        return f"SyntaxError: {error.msg}{place}"
    place = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _a(value: object) -> str:
    return "None (does it lack a return?)" if value is None else f"a {type(value).__name__}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
