from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from layerscope.compiled import ISAS, best_isa, find_compiler
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.build import LIBRARY
from layerscope.methods.focus.errors import BuildError, FocusError
from layerscope.methods.focus.native import native

SCRIPT = """
import warnings, torch
from torch import nn
from layerscope.methods.focus import FocusConfig, FocusedModel
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))).eval()
x = torch.randn(1, 3, 12, 12)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        f = FocusedModel(net, FocusConfig("1", threshold=1.0), example=x)
        y = f(x)
assert f.last_route == ["focused"]
print(f.backend, len(seen), float(y.double().sum()))
print(seen[0].message if seen else "")
"""


def run(**environment: str) -> list[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [*done.stdout.splitlines(), ""][:2]


@pytest.fixture(scope="module")
def usual() -> str:
    return run()[0]


def test_without_a_compiler_there_is_one_notice_and_the_same_result(tmp_path: Path, usual: str):
    line, notice = run(PATH=str(tmp_path), CXX="", LAYERSCOPE_CACHE=str(tmp_path / "cache"))
    backend, notices, total = line.split()
    assert (backend, notices) == ("torch", "1")
    assert "no C++ compiler" in notice
    assert float(total) == pytest.approx(float(usual.split()[2]), abs=1e-4)


def test_a_cache_that_cannot_be_written_gives_one_notice_and_the_same_result(tmp_path: Path, usual: str):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a directory should be")  # also root cannot write below it
    line, notice = run(LAYERSCOPE_CACHE=str(blocked / "cache"))
    backend, notices, total = line.split()
    assert (backend, notices) == ("torch", "1")
    assert "set LAYERSCOPE_CACHE" in notice
    assert float(total) == pytest.approx(float(usual.split()[2]), abs=1e-4)


def test_a_compiler_that_fails_gives_one_notice(tmp_path: Path):
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    line, notice = run(CXX=str(broken), LAYERSCOPE_CACHE=str(tmp_path / "cache"))
    assert line.split()[:2] == ["torch", "1"]
    assert "failed on" in notice
    assert not list((tmp_path / "cache").rglob("build-*"))  # nothing half-made is left


def test_a_library_that_does_not_load_gives_one_notice(tmp_path: Path):
    for isa in ISAS:
        place = tmp_path / "focus" / LIBRARY.key(isa, find_compiler() or "", torch.__version__)
        place.mkdir(parents=True)
        (place / "focus.so").write_bytes(b"not a library")
    line, notice = run(LAYERSCOPE_CACHE=str(tmp_path))
    assert line.split()[:2] == ["torch", "1"]
    assert "do not load" in notice


def test_a_second_build_comes_from_the_cache_and_the_key_knows_its_inputs(monkeypatch: pytest.MonkeyPatch):
    try:
        LIBRARY.build(best_isa(), quiet=True)
    except BuildError as error:
        pytest.skip(str(error))
    assert LIBRARY.build(best_isa(), quiet=True).seconds == 0.0
    key = LIBRARY.key("avx2", "g++", "2.0")
    assert key != LIBRARY.key("plain", "g++", "2.0")
    assert key != LIBRARY.key("avx2", "g++", "2.1")
    assert key != LIBRARY.key("avx2", "clang++", "2.0")


@pytest.mark.slow
def test_a_first_build_takes_less_than_a_minute_and_reports_progress(tmp_path: Path, capfd, monkeypatch):
    if find_compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setenv("LAYERSCOPE_CACHE", str(tmp_path))
    built = LIBRARY.build(best_isa())
    assert 0 < built.seconds < 60
    said = capfd.readouterr().err
    assert "compiling" in said
    assert f"isa_{best_isa()}.cpp" in said


def test_the_instruction_set_is_the_processors_and_others_are_refused():
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if " avx512f" not in flags and flags:
        assert best_isa() != "avx512"
    try:
        assert native("plain").isa == "plain"
    except BuildError as error:
        pytest.skip(str(error))
    with pytest.raises(BuildError, match="sse9"):
        native("sse9")


@pytest.mark.parametrize("variable", ["LAYERSCOPE_FOCUS_BACKEND", "ATEN_CPU_CAPABILITY"])
def test_the_environment_can_hold_it_to_avx2_with_the_same_result(variable: str, usual: str):
    if best_isa() == "plain" or usual.startswith("torch"):
        pytest.skip("no AVX2 or no compiler here")
    backend, notices, total = run(**{variable: "avx2"})[0].split()
    assert (backend, notices) == ("avx2", "0")
    assert float(total) == pytest.approx(float(usual.split()[2]), abs=1e-4)


def test_an_unknown_backend_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAYERSCOPE_FOCUS_BACKEND", "mmx")
    with pytest.raises(FocusError, match="LAYERSCOPE_FOCUS_BACKEND"):
        make_backend()


@pytest.mark.slow
def test_flags_that_the_compiler_does_not_know_leave_the_next_instruction_set(tmp_path: Path, usual: str):
    compiler = find_compiler()
    if compiler is None or best_isa() == "plain":
        pytest.skip("no compiler, or only plain code here")
    old = tmp_path / "old-cxx"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mavx*) echo "unknown option" >&2; exit 1;; esac\nexec {compiler} "$@"\n')
    old.chmod(0o755)
    backend, notices, total = run(CXX=str(old), LAYERSCOPE_CACHE=str(tmp_path / "cache"))[0].split()
    assert (backend, notices) == ("plain", "0")
    assert float(total) == pytest.approx(float(usual.split()[2]), abs=1e-4)


def test_a_machine_too_busy_to_compile_in_time_goes_on_with_one_notice(tmp_path: Path):
    slow = tmp_path / "slow-cxx"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    started = time.perf_counter()
    line, notice = run(CXX=str(slow), LAYERSCOPE_CACHE=str(tmp_path / "cache"), LAYERSCOPE_BUILD_SECONDS="1")
    assert time.perf_counter() - started < 50
    assert line.split()[:2] == ["torch", "1"]
    assert "busy" in notice
    assert not list((tmp_path / "cache").rglob("build-*"))


def test_importing_the_room_imports_no_torch():
    code = "import sys, layerscope.methods.focus, layerscope.cli.focus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
