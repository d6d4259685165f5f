from __future__ import annotations

from pathlib import Path

import pytest

from layerscope.methods.focus import energy


def tree(root: Path, *, start: int, limit: int = 10**9, name: str = "package-0") -> Path:
    for zone, title in (("intel-rapl:0", name), ("intel-rapl:0:0", "core")):
        (root / zone).mkdir(parents=True)
        (root / zone / "name").write_text(title + "\n")
        (root / zone / "max_energy_range_uj").write_text(str(limit))
        (root / zone / "energy_uj").write_text(str(start))
    return root


def test_joules_are_the_counter_minus_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tree(tmp_path, start=0)
    counter, clock = root / "intel-rapl:0" / "energy_uj", [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])

    def burn(seconds: float, watts: float) -> None:
        clock[0] += seconds
        counter.write_text(str(int(counter.read_text()) + round(1e6 * seconds * watts)))

    monkeypatch.setattr(energy.time, "sleep", lambda s: burn(s, 10.0))
    got = energy.measure(lambda: burn(2.0, 35.0), root=root, idle_seconds=1.0)
    assert got is not None
    assert got.idle_watts == pytest.approx(10.0)
    assert got.joules == pytest.approx(50.0)
    assert got.seconds == pytest.approx(2.0)
    assert (got.spread, got.repeats, got.wraps, got.domains) == (pytest.approx(0.0), 5, 0, ("package-0",))


def test_a_counter_that_overflows_is_corrected_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limit = 999_999
    root = tree(tmp_path, start=900_000, limit=limit)
    counter = root / "intel-rapl:0" / "energy_uj"
    monkeypatch.setattr(energy.time, "sleep", lambda s: None)
    got = energy.measure(lambda: counter.write_text(str((int(counter.read_text()) + 300_000) % (limit + 1))), root=root)
    assert got is not None
    assert got.joules == pytest.approx(0.3)
    assert got.wraps >= 1


def test_without_readable_counters_there_is_a_reason_and_no_number(tmp_path: Path):
    assert energy.measure(lambda: None, root=tmp_path / "none") is None
    assert "does not exist" in (energy.why_not(tmp_path / "none") or "")
    assert "no package counter" in (energy.why_not(tree(tmp_path, start=1, name="psys")) or "")
    with pytest.raises(ValueError, match="at least 5"):
        energy.measure(lambda: None, repeats=1, root=tmp_path)
