"""From a study file to its trials: grid, fixed values, exclusions, and a stated sub-sample.

::

    [study]
    name  = "norms on digits"
    trial = "layerscope.study.trials:probe_and_train"    # the default

    [grid]                                               # every combination
    norm = ["batch", "group:size=8", "none"]
    batch_size = [4, 32]
    seed = 3                                             # a whole number n stands for 0 ... n-1

    [fixed]                                              # the same in every trial
    net = "resnet20:width=8"
    steps = 200

    [[exclude]]                                          # combinations that match every line are left out
    norm = "batch"
    batch_size = 4

    [design]                                             # optional: not all combinations, but
    trials = 500                                         # this many, equally many from each stratum, drawn with
    strata = ["net", "norm"]                             # the given seed. A larger number keeps the trials of
    seed = 0                                             # a smaller one.

    [design]                                             # or: whole set-ups, each with every norm; see study.setups
    within = ["norm"]
    setups = 9
    strata = ["net", "data"]

    [split]                                              # optional: which trials are held out, written down before
    norm = ["frn"]                                       # the runs; a trial that matches any line is held out
    data = ["fashion-mnist:size=16"]

    [lists]                                              # optional: trials by name, see study.lists
    fresh = "fresh.txt"
"""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from layerscope.errors import StudyError, did_you_mean
from layerscope.study import lists as named
from layerscope.study.setups import Setups
from layerscope.study.trial import Trial, Value, function_of, signature_of

DEFAULT_TRIAL = "layerscope.study.trials:probe_and_train"

_SECTIONS = ("study", "grid", "fixed", "exclude", "design", "split", "lists")
_STUDY_KEYS = ("name", "trial", "about")
_DESIGN_KEYS = ("trials", "strata", "seed", "within", "setups", "square", "repeats")


@dataclass(frozen=True)
class Study:
    """A study file, read and checked."""

    name: str
    about: str
    function: str
    grid: tuple[tuple[str, tuple[Value, ...]], ...]
    fixed: tuple[tuple[str, Value], ...]
    exclude: tuple[tuple[tuple[str, tuple[Value, ...]], ...], ...]
    keep: int | None
    strata: tuple[str, ...]
    design_seed: int
    held_out: tuple[tuple[str, tuple[Value, ...]], ...]
    setups: Setups | None = None
    lists: named.Lists = ()
    path: Path | None = None

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial of the study, in the order of its grid; with set-ups, in the order of their rounds."""
        names = [name for name, _ in self.grid]
        trials = []
        for values in itertools.product(*(values for _, values in self.grid)):
            params = {**dict(self.fixed), **dict(zip(names, values, strict=True))}
            if not any(_matches(params, rule, all) for rule in self.exclude):
                trials.append(Trial.of(self.function, params))
        if self.setups is not None:
            return self.setups.draw(trials)
        return _thinned(trials, self.keep, self.strata, self.design_seed)

    def is_held_out(self, trial: Trial) -> bool:
        """Whether the file's ``[split]`` sets this trial aside for scoring."""
        return bool(self.held_out_by(trial))

    def held_out_by(self, trial: Trial) -> tuple[str, ...]:
        """The lines of the file's ``[split]`` that set this trial aside."""
        given = trial.arguments
        return tuple(name for name, values in self.held_out if given[name] in values)

    def listed(self, name: str) -> tuple[Trial, ...]:
        """The trials of one of the file's ``[lists]``, in its order.

        Raises:
            StudyError: no such list.
        """
        known = dict(self.lists)
        if name not in known:
            told = did_you_mean(name, known) if known else "the study file has no [lists]"
            raise StudyError(f"no list {name!r}: {told}")
        trials = {t.id: t for t in self.trials}
        return tuple(trials[i] for i in known[name])

    def distinct(self) -> dict[str, tuple[Value, ...]]:
        """Every value that an argument takes in any trial."""
        found: dict[str, dict[Value, None]] = {}
        for trial in self.trials:
            for name, value in trial.params:
                found.setdefault(name, {})[value] = None
        return {name: tuple(values) for name, values in found.items()}


def load(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        StudyError: no such file, no TOML, an unknown section or key (with the nearest known one), an empty grid, or
            a trial function that cannot be found. The message names the file and the place.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(f"no study file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path} is not TOML: {error}") from None
    try:
        return parse(document, path)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def parse(document: Mapping[str, Any], path: Path | None = None) -> Study:
    """A study from the mapping that a TOML file holds; see the module for the form.

    Raises:
        StudyError: as :func:`load`.
    """
    _known(document, _SECTIONS, "section")
    head = _table(document, "study")
    _known(head, _STUDY_KEYS, "key", "study")
    function = _text(head, "trial", DEFAULT_TRIAL)
    grid = {key: _axis(key, value) for key, value in _table(document, "grid").items()}
    fixed = {key: _value(value, f"fixed.{key}") for key, value in _table(document, "fixed").items()}
    if not grid:
        raise StudyError("the grid is empty: give at least one list under [grid], such as  norm = ['batch', 'none']")
    both = sorted(set(grid) & set(fixed))
    if both:
        raise StudyError(f"{both[0]!r} stands in [grid] and in [fixed]; keep one")
    _check_arguments(function, {*grid, *fixed})
    names = (*grid, *fixed)
    design = _table(document, "design")
    _known(design, _DESIGN_KEYS, "key", "design")
    study = Study(
        name=_text(head, "name", path.stem if path else "study"),
        about=_text(head, "about", ""),
        function=function,
        grid=tuple(grid.items()),
        fixed=tuple(fixed.items()),
        exclude=tuple(_rule(rule, names, "exclude") for rule in _tables(document, "exclude")),
        keep=_whole(design, "trials", None, 1),
        strata=_names(design, "strata", names),
        design_seed=_whole(design, "seed", 0, 0) or 0,
        held_out=_rule(_table(document, "split"), names, "split"),
        setups=_setups(design, grid, names),
        lists=named.read(_table(document, "lists"), path.parent if path else Path()),
        path=path,
    )
    if not study.trials:
        raise StudyError("every combination of the grid is excluded; nothing is left to run")
    named.check(study.lists, (t.id for t in study.trials))
    return study


def _thinned(trials: list[Trial], keep: int | None, strata: tuple[str, ...], seed: int) -> tuple[Trial, ...]:
    """Equally many trials of each stratum, those whose hashes come first; in grid order."""
    if keep is None or keep >= len(trials):
        return tuple(trials)

    def rank(trial: Trial) -> bytes:
        return hashlib.sha256(f"{seed}:{trial.id}".encode()).digest()

    groups: dict[tuple[Value, ...], list[Trial]] = {}
    for trial in sorted(trials, key=rank):
        groups.setdefault(tuple(trial.arguments[name] for name in strata), []).append(trial)
    turns = (t for turn in itertools.zip_longest(*groups.values()) for t in turn if t is not None)
    chosen = {trial.id for trial in itertools.islice(turns, keep)}
    return tuple(trial for trial in trials if trial.id in chosen)


def _matches(params: Mapping[str, Value], rule: Iterable[tuple[str, tuple[Value, ...]]], how: Any) -> bool:
    return bool(how(params[name] in values for name, values in rule))


def _check_arguments(function: str, given: set[str]) -> None:
    taken = signature_of(function_of(function))
    unknown = sorted(given - set(taken.known))
    if unknown and not taken.open:
        raise StudyError(f"{function} takes no argument {unknown[0]!r}: {did_you_mean(unknown[0], taken.known)}")
    absent = sorted(set(taken.required) - given)
    if absent:
        raise StudyError(f"{function} needs {absent[0]!r}; give it under [grid] or [fixed]")


def _rule(rule: Mapping[str, Any], names: tuple[str, ...], section: str) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    _known(rule, names, "key", section)
    return tuple(
        (key, tuple(_value(v, f"{section}.{key}") for v in (value if isinstance(value, list) else [value])))
        for key, value in rule.items()
    )


def _names(design: Mapping[str, Any], key: str, known: Iterable[str]) -> tuple[str, ...]:
    given = design.get(key, [])
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise StudyError(f"design.{key} must be a list of names")
    _known(dict.fromkeys(given), known, "name", f"design.{key}")
    return tuple(given)


def _setups(design: Mapping[str, Any], grid: Mapping[str, tuple[Value, ...]], names: tuple[str, ...]) -> Setups | None:
    """Set-ups that are drawn whole, where the file asks for them."""
    if "setups" not in design:
        alone = next((key for key in ("within", "square", "repeats") if key in design), None)
        if alone:
            raise StudyError(f"design.{alone} is about whole set-ups: say how many with design.setups")
        return None
    if "trials" in design:
        raise StudyError("design.trials draws single trials, design.setups whole set-ups; keep one")
    within, square = _names(design, "within", grid), _names(design, "square", grid)
    if not within:
        raise StudyError("design.within is missing: name what competes inside a set-up, such as  within = ['norm']")
    if square and (len(square) < 2 or len({len(grid[name]) for name in square}) > 1):
        raise StudyError("design.square must name two or more axes with equally many values")
    strata = _names(design, "strata", names)
    clash = sorted({*within, *square} & set(strata) | set(within) & set(square))
    if clash:
        raise StudyError(f"{clash[0]!r} stands in more than one of design.within, design.strata and design.square")
    count = design["setups"]
    if isinstance(count, dict):
        values = {str(v) for name in strata for v in grid.get(name, ())}
        _known(count, values, "value of a stratum", "design.setups")
        number: int | tuple[tuple[str, int], ...] = tuple((v, _whole(count, v, None, 1) or 1) for v in count)
    else:
        number = _whole(design, "setups", None, 1) or 1
    return Setups(
        within=within,
        strata=strata,
        count=number,
        square=tuple((name, grid[name]) for name in square),
        repeats=_whole(design, "repeats", 0, 0) or 0,
        seed=_whole(design, "seed", 0, 0) or 0,
    )


def _axis(key: str, value: Any) -> tuple[Value, ...]:
    if key == "seed" and isinstance(value, int) and not isinstance(value, bool):
        value = list(range(value))
    if not isinstance(value, list):
        raise StudyError(f"grid.{key} must be a list of values, got {value!r}; a single value belongs under [fixed]")
    if not value:
        raise StudyError(f"grid.{key} is empty: a grid needs at least one value on each axis")
    values = tuple(_value(v, f"grid.{key}") for v in value)
    if len(set(values)) < len(values):
        twice = next(v for v in values if values.count(v) > 1)
        raise StudyError(f"grid.{key} holds {twice!r} twice")
    return values


def _value(value: Any, where: str) -> Value:
    if isinstance(value, list):
        if not all(isinstance(v, bool | int | float | str) for v in value):
            raise StudyError(f"{where}: a list may hold only text, numbers and true or false")
        return tuple(value)
    if isinstance(value, float) and value - value != 0.0:
        raise StudyError(f"{where}: {value} is not a finite number")
    if not isinstance(value, bool | int | float | str):
        raise StudyError(f"{where}: {type(value).__name__} is not text, a number, true or false, or a list of these")
    return value


def _known(given: Mapping[str, Any], known: Iterable[str], what: str, section: str = "") -> None:
    for key in given:
        if key not in known:
            where = f" in [{section}]" if section else ""
            raise StudyError(f"unknown {what} {key!r}{where}: {did_you_mean(key, known)}")


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise StudyError(f"{name} must be a table: [{name}]")
    return table


def _tables(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) and t for t in tables):
        raise StudyError(f"{name} must be tables with at least one line: [[{name}]]")
    return tables


def _text(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise StudyError(f"{key} must be text, got {value!r}")
    return value


def _whole(table: Mapping[str, Any], key: str, default: int | None, low: int) -> int | None:
    value = table.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise StudyError(f"design.{key} must be a whole number of at least {low}, got {value!r}")
    return value
