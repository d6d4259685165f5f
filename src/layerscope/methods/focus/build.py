"""Compile the kernels once per machine and torch version, and keep the library in the user's cache directory.

The compiler is called directly: five small files, about ten seconds, no build tool. Each instruction set is a file of
its own with its own flags, so that the same library is safe on a processor that lacks them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from layerscope.methods.focus.errors import BuildError

SOURCES = Path(__file__).parent / "native"
_X86 = platform.machine().lower() in ("x86_64", "amd64")
#: file -> extra flags. -O3, because -O2 leaves the accumulator loops rolled and halves the speed.
_FILES: dict[str, tuple[str, ...]] = {
    "isa_plain.cpp": (),
    "tables.cpp": (),
    "entry.cpp": ("-fopenmp",) if sys.platform.startswith("linux") else (),
    "isa_avx2.cpp": ("-mavx2", "-mfma") if _X86 else (),
    "isa_avx512.cpp": ("-mavx512f", "-mavx2", "-mfma") if _X86 else (),
}
_COMMON = ("-O3", "-std=c++20", "-fPIC", "-fno-math-errno", "-w")


@dataclass(frozen=True)
class Built:
    """A finished library."""

    path: Path
    seconds: float
    """Time spent compiling; 0 if it came from the cache."""


def cache_dir() -> Path:
    """``$LAYERSCOPE_CACHE``, or the platform's cache directory, with ``layerscope`` below it."""
    if chosen := os.environ.get("LAYERSCOPE_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "layerscope"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerscope"


def find_compiler() -> str | None:
    """``$CXX`` or the first of g++, clang++, c++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(*, quiet: bool = False) -> Built:
    """The library for this source, torch version, compiler and machine: from the cache, or compiled now.

    Raises:
        BuildError: no compiler, a cache directory that cannot be written, or a compiler that fails; the message
            says which and what to do.
    """
    import torch

    compiler = find_compiler()
    key = _key(compiler or "", torch.__version__)
    ready = cache_dir() / "focus" / key / "focus.so"
    if ready.exists():
        return Built(ready, 0.0)
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++, c++): install one for the fast kernels")
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=ready.parent))
    except OSError as error:
        raise BuildError(
            f"cannot write the cache directory {cache_dir()} ({error.strerror}): "
            "set LAYERSCOPE_CACHE to one that can be"
        ) from None
    started = time.perf_counter()
    try:
        if not quiet:
            _say("compiling the focused convolution kernels (once, about 10 s)")
        _compile(compiler, Path(torch.__file__).parent, work, quiet)
        os.replace(work / "focus.so", ready)  # atomic: two processes may build at once, either result is good
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.perf_counter() - started
    if not quiet:
        _say(f"ready in {seconds:.0f} s, kept in {ready.parent}")
    return Built(ready, seconds)


def _key(compiler: str, torch_version: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for word in (compiler, torch_version, platform.machine(), sys.platform, *_COMMON, str(_FILES)):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:20]


def _compile(compiler: str, torch_root: Path, work: Path, quiet: bool) -> None:
    def one(item: tuple[str, tuple[str, ...]]) -> Path:
        name, flags = item
        target = work / (name + ".o")
        include = ("-I", str(torch_root / "include")) if name == "entry.cpp" else ()
        _call([compiler, *_COMMON, *flags, *include, "-c", str(SOURCES / name), "-o", str(target)])
        if not quiet:
            _say(f"  {name}")
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = list(pool.map(one, _FILES.items()))
    libraries = torch_root / "lib"
    # torch's own OpenMP runtime, by file: the same one that its thread pool already runs on
    gomp = sorted(libraries.glob("libgomp*.so*"))
    _call(
        [
            compiler,
            "-shared",
            *map(str, objects),
            "-o",
            str(work / "focus.so"),
            f"-L{libraries}",
            "-ltorch_cpu",
            "-lc10",
        ]
        + [str(g) for g in gomp[:1]]
        + [f"-Wl,-rpath,{libraries}"]
    )


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:1])} failed on {command[-3]}:\n{done.stderr.strip()[-2000:]}")


def _say(text: str) -> None:
    print(f"layerscope: {text}", file=sys.stderr, flush=True)
