"""C++ kernels that are compiled where they are first used, and kept in the user's cache directory.

The compiler is called directly: a few small files, seconds of work, no build tool. A library holds one instruction
set, so a cache that machines share holds nothing that one of them cannot run. A machine so busy that compiling takes a
minute gets plain PyTorch for the time being, rather than a program that stands still.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from layerscope.errors import BuildError

Isa = Literal["avx512", "avx2", "plain"]
ISAS: tuple[Isa, ...] = ("avx512", "avx2", "plain")
T = TypeVar("T")

_X86 = platform.machine().lower() in ("x86_64", "amd64")
_FLAGS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx2", "-mfma"),
}
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


@dataclass(frozen=True)
class Unit:
    """A source file; ``{isa}`` in its name is the instruction set."""

    name: str
    isa: bool = False
    """Compiled for the instruction set."""
    torch: bool = False
    """Includes torch's headers, and splits its work over torch's threads."""


@dataclass(frozen=True)
class Library:
    """What is compiled together."""

    name: str
    """Folder in the cache, and name of the file."""
    what: str
    """As the notices call it."""
    sources: Path
    units: tuple[Unit, ...]
    seconds: int
    """How long it takes, about."""
    flags: tuple[str, ...] = ()
    """Further flags for every unit."""

    def build(self, isa: str, *, quiet: bool = False) -> Built:
        """The library for this instruction set, source, torch version and compiler: from the cache, or compiled now.

        Raises:
            BuildError: no compiler, a cache directory that cannot be written, a compiler that fails, or a machine too
                busy to finish within ``LIMIT``; the message says which and what to do.
        """
        import torch

        compiler = find_compiler()
        ready = cache_dir() / self.name / self.key(isa, compiler or "", torch.__version__) / f"{self.name}.so"
        if ready.exists():
            return Built(ready, 0.0)
        if compiler is None:
            raise BuildError(
                "no C++ compiler found (looked for $CXX, g++, clang++, c++): install one for the fast kernels",
                final=True,
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
                say(f"compiling {self.what} for {isa} (once, about {self.seconds} s)")
            made = self._compile(isa, compiler, Path(torch.__file__).parent, work, quiet)
            os.replace(made, ready)  # atomic: two processes may build at once, either result is good
        finally:
            shutil.rmtree(work, ignore_errors=True)
        seconds = time.perf_counter() - started
        if not quiet:
            say(f"ready in {seconds:.0f} s, kept in {ready.parent}")
        return Built(ready, seconds)

    def key(self, isa: str, compiler: str, torch_version: str) -> str:
        """What the result depends on, as a name of a folder."""
        digest = hashlib.sha256()
        for path in sorted(self.sources.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        words = (isa, compiler, torch_version, platform.machine(), sys.platform, *_COMMON, str(_FLAGS), *self.flags)
        for word in (*words, str(self.units)):
            digest.update(word.encode() + b"\0")
        return digest.hexdigest()[:20]

    def _compile(self, isa: str, compiler: str, torch_root: Path, work: Path, quiet: bool) -> Path:
        openmp = ("-fopenmp",) if sys.platform.startswith("linux") else ()
        until = time.monotonic() + float(os.environ.get("LAYERSCOPE_BUILD_SECONDS", LIMIT))

        def one(unit: Unit) -> Path:
            name = unit.name.format(isa=isa)
            target = work / (name + ".o")
            own = (*(_FLAGS[isa] if unit.isa else ()), *((*openmp, "-I", str(torch_root / "include")) * unit.torch))
            sources = ["-c", str(self.sources / name), "-o", str(target)]
            _call([compiler, *_COMMON, *self.flags, *own, *sources], name, until)
            if not quiet:
                say(f"  {name}")
            return target

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(one, self.units))
        made, libraries = work / f"{self.name}.so", torch_root / "lib"
        # torch's own OpenMP runtime, by file: the same one that its thread pool already runs on
        gomp = sorted(libraries.glob("libgomp*.so*"))
        link = [compiler, "-shared", *map(str, objects), "-o", str(made), f"-L{libraries}", "-ltorch_cpu"]
        _call([*link, "-lc10", *map(str, gomp[:1]), f"-Wl,-rpath,{libraries}"], "linking", until)
        return made


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


def best_isa() -> Isa:
    """The widest instruction set that torch uses on this processor (``ATEN_CPU_CAPABILITY`` limits it)."""
    import torch

    known: dict[str, Isa] = {"AVX512": "avx512", "AVX2": "avx2"}
    return known.get(torch.backends.cpu.get_cpu_capability(), "plain")


def best(make: Callable[[Isa], T]) -> T | BuildError:
    """What ``make`` gives for the widest instruction set that can be compiled here, or why there is none.

    An instruction set that cannot be compiled gives way to the next.
    """
    first: BuildError | None = None
    for isa in ISAS[ISAS.index(best_isa()) :]:
        try:
            return make(isa)
        except BuildError as error:
            first = first or error
            if error.final:
                break
    assert first is not None
    return first


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


def say(text: str) -> None:
    """One line of progress, or a notice, to stderr."""
    print(f"layerscope: {text}", file=sys.stderr, flush=True)
