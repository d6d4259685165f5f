"""Trials on a real local Ray. Skipped, with the reason, where Ray is not installed."""

import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from layerscope.errors import MissingExtraError
from layerscope.study import Store, on_ray, parse, run

TESTS = Path(__file__).resolve().parents[1]


def make(function, grid, **fixed):
    return parse({"study": {"name": "t", "trial": f"study.dummies:{function}"}, "grid": grid, "fixed": fixed})


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'layerscope\[cluster\]'"):
        run(make("square", {"x": [1]}), on_ray(), store=tmp_path / "a.sqlite")


@pytest.fixture
def _paths(monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; pip install 'layerscope[cluster]'")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")


@pytest.mark.slow
@pytest.mark.usefixtures("_paths")
@pytest.mark.filterwarnings("ignore")  # Ray's own deprecations and open sockets are not ours to mend
def test_two_workers_one_of_which_is_killed_in_mid_study(tmp_path):
    study = make("tells_its_process", {"x": list(range(24))}, folder=str(tmp_path), seconds=0.5)
    killed = []

    def kill_one():
        until = time.monotonic() + 120
        while time.monotonic() < until and not killed:
            seen = sorted(p for p in tmp_path.glob("*-*") if p.name[0].isdigit())
            if len(seen) >= 5:
                victim = int(max(seen, key=lambda p: p.stat().st_mtime).name.split("-")[0])
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    now = run(study, on_ray(workers=2), store=tmp_path / "a.sqlite")
    thread.join()
    assert killed
    assert (now.done, now.failed, now.left) == (24, 0, 0)
    with Store(tmp_path / "a.sqlite") as store:
        assert {r.params["x"]: r.result["y"] for r in store.rows()} == {x: float(x) for x in range(24)}
    processes = {int(p.name.split("-")[0]) for p in tmp_path.glob("*-*") if p.name[0].isdigit()}
    assert len(processes) >= 3
