"""Trial functions that need no network: fast, slow, failing, dying."""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import time
from pathlib import Path


def square(*, x: int, seed: int = 0) -> dict[str, float]:
    noise = random.Random(f"{x}:{seed}").random()
    return {"y": x * x + noise, "nan": math.nan}


def slow(*, x: int, seed: int = 0, seconds: float = 0.01) -> dict[str, float]:
    time.sleep(seconds)
    return square(x=x, seed=seed)


def fails_on_odd(*, x: int) -> dict[str, float]:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return {"y": float(x)}


def dies(*, x: int, deadly: int = 3) -> dict[str, float]:
    if x == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": float(x)}


def dies_once(*, x: int, folder: str) -> dict[str, float]:
    mark = Path(folder) / f"died-{x}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": float(x)}


def tells_its_process(*, x: int, folder: str, seconds: float = 0.2) -> dict[str, float]:
    (Path(folder) / f"{os.getpid()}-{x}").touch()
    time.sleep(seconds)
    return {"y": float(x)}


def big(*, x: int) -> dict[str, str]:
    return {"text": hashlib.sha256(str(x).encode()).hexdigest() * 200}


def threads(*, x: int) -> dict[str, str]:
    return {"omp": os.environ.get("OMP_NUM_THREADS", "")}


def no_mapping(*, x: int) -> int:
    return x


def no_plain(*, x: int) -> dict[str, object]:
    return {"y": object()}


def anything(**kwargs: object) -> dict[str, object]:
    return dict(kwargs)


def checked(*, x: int) -> dict[str, float]:
    return {"y": float(x)}


def _check(values: dict[str, tuple[int, ...]]) -> None:
    from layerscope.errors import DataError

    if 99 in values["x"]:
        raise DataError("no data set '99'")


checked.check = _check  # type: ignore[attr-defined]
