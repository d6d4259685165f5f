"""Compile the kernels once per instruction set and torch version, and keep the library in the user's cache directory.

The compiler is called directly: three small files, about five seconds of work, no build tool. Each instruction set is
a library of its own, so a cache that machines share holds nothing that one of them cannot run. A machine so busy that
this takes a minute gets plain PyTorch for the time being, rather than a program that stands still.
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
_FLAGS = {"plain": (), "avx2": ("-mavx2", "-mfma"), "avx512": ("-mavx512f", "-mavx2", "-mfma")}
#: -O3, because -O2 leaves the accumulator loops rolled and halves the speed.
_COMMON = ("-O3", "-std=c++20", "-fPIC", "-fno-math-errno", "-w")
#: Seconds after which a build is given up; ``LAYERSCOPE_BUILD_SECONDS`` changes it.
LIMIT = 55.0


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


def build(isa: str, *, quiet: bool = False) -> Built:
    """The library for this instruction set, source, torch version and compiler: from the cache, or compiled now.

    Raises:
        BuildError: no compiler, a cache directory that cannot be written, a compiler that fails, or a machine too busy
            to finish within ``LIMIT``; the message says which and what to do.
    """
    import torch

    compiler = find_compiler()
    key = _key(isa, compiler or "", torch.__version__)
    ready = cache_dir() / "focus" / key / "focus.so"
    if ready.exists():
        return Built(ready, 0.0)
    if compiler is None:
        raise BuildError(
            "no C++ compiler found (looked for $CXX, g++, clang++, c++): install one for the fast kernels", final=True
        )
    if isa != "plain" and not _X86:
        raise BuildError(f"{platform.machine()} has no {isa}")
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=ready.parent))
    except OSError as error:
        raise BuildError(
            f"cannot write the cache directory {cache_dir()} ({error.strerror}): "
            "set LAYERSCOPE_CACHE to one that can be",
            final=True,
        ) from None
    started = time.perf_counter()
    try:
        if not quiet:
            _say(f"compiling the focused convolution kernels for {isa} (once, about 10 s)")
        _compile(isa, compiler, Path(torch.__file__).parent, work, quiet)
        os.replace(work / "focus.so", ready)  # atomic: two processes may build at once, either result is good
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.perf_counter() - started
    if not quiet:
        _say(f"ready in {seconds:.0f} s, kept in {ready.parent}")
    return Built(ready, seconds)


def _key(isa: str, compiler: str, torch_version: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for word in (isa, compiler, torch_version, platform.machine(), sys.platform, *_COMMON, str(_FLAGS)):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:20]


def _compile(isa: str, compiler: str, torch_root: Path, work: Path, quiet: bool) -> None:
    openmp = ("-fopenmp",) if sys.platform.startswith("linux") else ()
    files: dict[str, tuple[str, ...]] = {
        f"isa_{isa}.cpp": _FLAGS[isa],
        "entry.cpp": (*openmp, "-I", str(torch_root / "include")),
        "tables.cpp": (),
    }
    until = time.monotonic() + float(os.environ.get("LAYERSCOPE_BUILD_SECONDS", LIMIT))

    def one(item: tuple[str, tuple[str, ...]]) -> Path:
        name, flags = item
        target = work / (name + ".o")
        _call([compiler, *_COMMON, *flags, "-c", str(SOURCES / name), "-o", str(target)], name, until)
        if not quiet:
            _say(f"  {name}")
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = list(pool.map(one, files.items()))
    libraries = torch_root / "lib"
    # torch's own OpenMP runtime, by file: the same one that its thread pool already runs on
    gomp = sorted(libraries.glob("libgomp*.so*"))
    link = [compiler, "-shared", *map(str, objects), "-o", str(work / "focus.so"), f"-L{libraries}", "-ltorch_cpu"]
    _call([*link, "-lc10", *map(str, gomp[:1]), f"-Wl,-rpath,{libraries}"], "linking", until)


def _call(command: list[str], what: str, until: float) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=max(0.1, until - time.monotonic())
        )
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"compiling {what} was not finished in time: this machine is busy. It is tried again next time; "
            "LAYERSCOPE_BUILD_SECONDS gives it longer",
            final=True,
        ) from None
    if done.returncode:
        raise BuildError(f"{command[0]} failed on {what}:\n{done.stderr.strip()[-2000:]}")


def _say(text: str) -> None:
    print(f"layerscope: {text}", file=sys.stderr, flush=True)
